"""What a user asks of the probes, and the rendered prompts that it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.experiments.loading import load_tokenizer
from mechprobe.experiments.questions import as_questions, question_rows
from mechprobe.experiments.rendered import LABELS, SPLITS, prompt_set, template_digest
from mechprobe.experiments.spec import PROBE_NAMES, ProbeName
from mechprobe.preflight import Problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechprobe.behavior.multiple_choice import Question
    from mechprobe.models.checkpoint import Kernel
    from mechprobe.models.rendering import Template
    from mechprobe.probes.battery import Setup
    from mechprobe.probes.refusal_tokens import RefusalTokens


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What a user asks of the probes."""

    model: str
    out: Path
    probes: tuple[ProbeName, ...] = PROBE_NAMES
    baseline: str | None = None
    prompts: str | None = None
    """A prompt source; None is the world's for an organism, else the built-in set."""
    questions: str | None = None
    """A JSONL file of labelled questions; None is the world's for an organism, else none."""
    n_questions: int = 200
    layer: int | None = None
    kernel: Kernel = "dense"
    device: str = "cpu"
    revision: str | None = None
    expect: str | None = None
    tokenizer: str | None = None
    chat_template: Path | None = None
    template: Template = "chat"
    fit: int = 128
    select: int = 32
    evaluate: int = 100
    causal: bool = True
    study: bool = False
    instrument: str = "hard"
    refusal_tokens: tuple[str, ...] = ()
    refusal_preset: str | None = None
    max_new_tokens: int = 32
    seed: int = 0


def prompt_source(model: str, prompts: str | None) -> str:
    """The prompts to use where the user names none: an organism knows only its own world."""
    from mechprobe.controls import is_of_world

    return prompts or ("organism" if is_of_world(model) else "builtin")


def make_setup(request: ProbeRequest) -> Setup:
    """Prompts rendered with the baseline's tokenizer, and everything else that is asked for.

    Raises:
        MechprobeError: Prompts, questions or refusal tokens cannot be used; where there is more
            than one mistake, a `PreflightError` names each.
    """
    problems = Problems()
    setup = setup_or_problems(request, problems)
    problems.require_none()
    assert setup is not None
    return setup


def setup_or_problems(
    request: ProbeRequest, problems: Problems, *, renders: bool = True
) -> Setup | None:
    """Make a setup, or take down all that is wrong with it.

    Args:
        request: What is asked for.
        problems: Takes what is found.
        renders: Whether there is a tokenizer; without one only files are looked at.
    """
    source = prompt_source(request.baseline or request.model, request.prompts)
    template = str(request.chat_template) if request.chat_template else None
    tokenizer = tokens = None
    with problems.of("prompts"):
        if renders:
            tokenizer = load_tokenizer(
                request.tokenizer or request.baseline or request.model, request.revision, template
            )
        else:
            template_digest(template)
    if tokenizer is not None:
        tokens = _named_tokens(request, tokenizer, problems)
    records = {}
    with problems.of("prompts"):
        counts = {"fit": request.fit, "select": request.select, "evaluate": request.evaluate}
        for name in _splits(request) if renders else ("evaluate",):
            drawn = prompt_set(source, SPLITS[name], counts[name], request.seed)
            for label in LABELS:
                records[f"{name}/{label}"] = [each for each in drawn if each.label == label]
    questions = None
    with problems.of("prompts"):
        questions = _questions(request, source)
    if tokenizer is None or problems:
        return None
    from mechprobe.models.rendering import encode
    from mechprobe.probes.battery import Setup
    from mechprobe.probes.fitting import twin_rows

    asked = None
    if questions is not None:
        texts = [question.prompt for question in questions]
        asked = encode(tokenizer, texts, template=request.template), questions
    return Setup(
        prompts={
            name: encode(tokenizer, [each.text for each in rows], template=request.template)
            for name, rows in records.items()
        },
        probes=request.probes,
        study=request.study,
        twins=twin_rows(records.get("fit/harmful", ()), records.get("fit/harmless", ())),
        clusters={name: [each.cluster for each in rows] for name, rows in records.items()},
        tokens=tokens,
        place=None if request.layer is None else (-1, request.layer),
        questions=asked,
        causal=request.causal,
        instrument=request.instrument,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )


def _splits(request: ProbeRequest) -> list[str]:
    """Which prompts the probes read, of those that are fitted, selected and evaluated on."""
    from mechprobe.probes.battery import prompt_sets

    wanted = prompt_sets(
        request.probes,
        study=request.study,
        tokens=bool(request.refusal_tokens or request.refusal_preset),
        place=request.layer is not None,
    )
    return [name for name in SPLITS if any(each.startswith(f"{name}/") for each in wanted)]


def _questions(request: ProbeRequest, source: str) -> list[Question] | None:
    """What calibration asks; None where it asks nothing."""
    asks = "calibration" in request.probes and not request.study
    named = request.questions or ("organism" if source == "organism" and asks else None)
    if named is None:
        return None
    # a file that was named is read even where nothing is asked: it may not be there
    found = as_questions(question_rows(named, request.n_questions, request.seed))
    return found if asks else None


def _named_tokens(
    request: ProbeRequest, tokenizer: PreTrainedTokenizerBase, problems: Problems
) -> RefusalTokens | None:
    from mechprobe.probes.refusal_presets import named_tokens, preset_tokens

    tokens = None
    with problems.of("vocabulary"):
        if request.refusal_preset is not None:
            return preset_tokens(tokenizer, request.refusal_preset)
        for name in request.refusal_tokens:
            with problems.of("vocabulary"):
                named_tokens(tokenizer, [name])
        if request.refusal_tokens:
            tokens = named_tokens(tokenizer, request.refusal_tokens)
    return tokens
