"""Probes on one checkpoint, beside its baseline: never two models in memory together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.loading import load_tokenizer
from mechprobe.experiments.questions import as_questions, question_rows
from mechprobe.experiments.rendered import LABELS, SPLITS, prompt_set
from mechprobe.experiments.spec import PROBE_NAMES, ProbeName
from mechprobe.models.load import require_device
from mechprobe.models.source import resolve_source
from mechprobe.preflight import (
    Problems,
    check_checkpoint,
    require_hooks,
    require_same_model,
    require_same_vocabulary,
    require_writable,
)
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechprobe.models.checkpoint import Checkpoint, Kernel
    from mechprobe.models.rendering import Template
    from mechprobe.probes.battery import Setup
    from mechprobe.probes.refusal_tokens import RefusalTokens

BASELINE = "baseline"
"""Folder of the baseline's probes, within the cell's."""


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
        MechprobeError: Prompts, questions or refusal tokens cannot be used.
    """
    from mechprobe.models.rendering import encode
    from mechprobe.probes.battery import Setup, prompt_sets
    from mechprobe.probes.fitting import twin_rows

    tokenizer = load_tokenizer(
        request.tokenizer or request.baseline or request.model,
        request.revision,
        str(request.chat_template) if request.chat_template else None,
    )
    source = prompt_source(request.baseline or request.model, request.prompts)
    tokens = _named_tokens(request, tokenizer)
    place = None if request.layer is None else (-1, request.layer)
    wanted = prompt_sets(
        request.probes, study=request.study, tokens=tokens is not None, place=place is not None
    )
    counts = {"fit": request.fit, "select": request.select, "evaluate": request.evaluate}
    records = {}
    for name, n in counts.items():
        if not any(each.startswith(f"{name}/") for each in wanted):
            continue
        drawn = prompt_set(source, SPLITS[name], n, request.seed)
        for label in LABELS:
            records[f"{name}/{label}"] = [each for each in drawn if each.label == label]
    setup = Setup(
        prompts={
            name: encode(tokenizer, [each.text for each in rows], template=request.template)
            for name, rows in records.items()
        },
        probes=request.probes,
        study=request.study,
        twins=twin_rows(records.get("fit/harmful", ()), records.get("fit/harmless", ())),
        clusters={name: [each.cluster for each in rows] for name, rows in records.items()},
        tokens=tokens,
        place=place,
        causal=request.causal,
        instrument=request.instrument,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    asks = "calibration" in request.probes and not request.study
    asked = request.questions or ("organism" if source == "organism" and asks else None)
    if asked is None:
        return setup
    # a file that was named is read even where nothing is asked: it may not be there
    questions = as_questions(question_rows(asked, request.n_questions, request.seed))
    if not asks:
        return setup
    texts = [question.prompt for question in questions]
    return replace(
        setup, questions=(encode(tokenizer, texts, template=request.template), questions)
    )


def _named_tokens(
    request: ProbeRequest, tokenizer: PreTrainedTokenizerBase
) -> RefusalTokens | None:
    from mechprobe.probes.refusal_presets import named_tokens, preset_tokens

    if request.refusal_preset is not None:
        return preset_tokens(tokenizer, request.refusal_preset)
    return named_tokens(tokenizer, request.refusal_tokens) if request.refusal_tokens else None


def run_probes(
    request: ProbeRequest,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Probe a checkpoint, and its baseline first where there is one.

    Args:
        request: What to probe; `out` gets the cell's files, `out/baseline` the baseline's.
        say: Told what is being done.
        warn: Told what the results will warn of, as soon as it is known.
        progress: Told how far it is with what `say` was told of.

    Returns:
        By probe, the result dataclass of the cell.

    Raises:
        MechprobeError: A checkpoint or the prompts cannot be used; found before anything is loaded
            where headers and names show it.
        RunDirectoryError: Another process probes into `out`; the message says which.
    """
    require_ready(request)
    from mechprobe.probes import battery
    from mechprobe.probes.baseline import baseline_warnings
    from mechprobe.probes.folder import ProbeFolder
    from mechprobe.probes.running import locked_folder, run, run_held

    say("rendering prompts")
    setup = make_setup(request)
    for note in next(iter(setup.prompts.values())).notes:
        warn(f"prompts: {note}")
    here, baseline = ProbeFolder(request.out), None
    with ExitStack() as held:  # from the first file on, the folder is ours to the end
        if request.baseline is not None:
            say(f"baseline {request.baseline}")
            baseline = ProbeFolder(request.out / BASELINE)
            checkpoint = _load(request, request.baseline)
            for line in baseline_warnings(checkpoint.quant.precision):
                warn(line)
            battery.require_fit(checkpoint, setup, is_baseline=True)
            held.enter_context(locked_folder(here))
            # a baseline is measured, not steered: what its cells are compared with needs no answer
            alone = replace(setup, causal=False)
            before = run(checkpoint, alone, baseline, say=say, progress=progress)
            if "refusal_direction" in before and before["refusal_direction"].unmet:
                lacking = ", ".join(before["refusal_direction"].unmet)
                warn(f"of the baseline's refusal direction is not measured: {lacking}")
            del checkpoint
            gc.collect()
        say(f"model {request.model}")
        checkpoint = _load(request, request.model, revision=request.revision, expect=request.expect)
        battery.require_fit(checkpoint, setup, is_baseline=baseline is None)
        if baseline is None:
            held.enter_context(locked_folder(here))
        return run_held(checkpoint, setup, here, baseline, say=say, progress=progress)


def require_ready(request: ProbeRequest) -> None:
    """Check everything that a request names, by headers alone.

    Raises:
        MechprobeError: Something cannot be used; where there is more than one mistake, a
            `PreflightError` names each.
    """
    from mechprobe.behavior.refusal import get_instrument

    problems = Problems()
    with problems.of("output"):
        require_writable(request.out, folder=True)
    with problems.of("scorer"):
        get_instrument(request.instrument)
    with problems.of("device"):
        if request.device != "cpu":
            require_device(request.device)
    named = {request.model: (request.revision, request.expect)}
    if request.baseline is not None:
        named.setdefault(request.baseline, (None, None))
    headers = {
        text: check_checkpoint(
            problems, text, revision=revision, expect=expect, kernel=request.kernel,
            layer=request.layer,
        )
        for text, (revision, expect) in named.items()
    }  # fmt: skip
    renderer = None
    with problems.of("source"):
        text = request.tokenizer or request.baseline or request.model
        renderer = resolve_source(text, revision=request.revision)
    for header in headers.values():
        if header is None:
            continue
        with problems.of("architecture"):
            if request.kernel == "native":
                require_hooks(header)
        baseline = headers.get(request.baseline or request.model)
        with problems.of("same model"):
            if baseline is not None:
                logits = not {"entropy", "calibration"}.isdisjoint(request.probes)
                require_same_model(header.shape, baseline.shape, logits=logits)
            with problems.of("vocabulary"):
                if renderer is not None:
                    require_same_vocabulary(header, renderer)
    problems.require_none()


def _load(request: ProbeRequest, source: str, **more: Any) -> Checkpoint:
    from mechprobe import session

    return session.load(
        source,
        kernel=request.kernel,
        device=request.device,
        tokenizer=request.tokenizer or request.baseline,
        **more,
    ).checkpoint
