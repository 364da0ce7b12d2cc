"""One probe on one checkpoint, beside its baseline: never two models in memory together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.loading import load_tokenizer
from mechprobe.experiments.rendered import LABELS, prompt_set

if TYPE_CHECKING:
    from mechprobe.behavior.prompt_set import Split
    from mechprobe.models.checkpoint import Checkpoint, Kernel
    from mechprobe.models.rendering import EncodedPrompts, Template
    from mechprobe.probes.refusal_direction import RefusalDirectionResult


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What a user asks of the refusal direction."""

    model: str
    baseline: str | None = None
    prompts: str | None = None
    """A prompt source; None is the world's for an organism, else the built-in set."""
    layer: int | None = None
    kernel: Kernel = "dense"
    device: str = "cpu"
    revision: str | None = None
    expect: str | None = None
    tokenizer: str | None = None
    chat_template: Path | None = None
    template: Template = "chat"
    fit: int = 128
    evaluate: int = 32
    causal: bool = True
    instrument: str = "hard"
    max_new_tokens: int = 32
    seed: int = 0


def prompt_source(model: str, prompts: str | None) -> str:
    """The prompts to use where the user names none: an organism knows only its own world."""
    return prompts or ("organism" if model.startswith("organism:") else "builtin")


def render_splits(request: ProbeRequest) -> dict[tuple[Split, str], EncodedPrompts]:
    """Fitting and held-out prompts of both labels, rendered with the baseline's tokenizer."""
    from mechprobe.models.rendering import encode

    tokenizer = load_tokenizer(
        request.tokenizer or request.baseline or request.model,
        request.revision,
        str(request.chat_template) if request.chat_template else None,
    )
    source = prompt_source(request.baseline or request.model, request.prompts)
    wanted: tuple[tuple[Split, int], ...] = (
        ("train", request.fit),
        ("validation", request.evaluate),
    )
    rendered: dict[tuple[Split, str], EncodedPrompts] = {}
    for split, n in wanted:
        drawn = prompt_set(source, split, n, request.seed)
        for label in LABELS:
            texts = [record.text for record in drawn if record.label == label]
            rendered[split, label] = encode(tokenizer, texts, template=request.template)
    return rendered


def probe_refusal_direction(
    request: ProbeRequest, say: Callable[[str], None] = lambda text: None
) -> RefusalDirectionResult:
    """Fit, compare and test the refusal direction of one checkpoint.

    Args:
        request: What to probe.
        say: Told what is being done.

    Raises:
        MechprobeError: A checkpoint or the prompts cannot be used.
    """
    from mechprobe.behavior.refusal import get_instrument
    from mechprobe.probes import refusal_direction as probe

    get_instrument(request.instrument)
    say("rendering prompts")
    prompts = render_splits(request)
    fitting = [prompts["train", label] for label in LABELS]
    before = None
    if request.baseline is not None:
        say(f"baseline {request.baseline}")
        checkpoint = _load(request, request.baseline)
        before = probe.fit(checkpoint, *fitting, layer=request.layer)
        del checkpoint
        gc.collect()
    say(f"model {request.model}")
    return probe.run(
        _load(request, request.model, revision=request.revision, expect=request.expect),
        *fitting,
        eval_harmful=prompts["validation", "harmful"],
        eval_harmless=prompts["validation", "harmless"],
        layer=request.layer,
        baseline=before,
        causal=request.causal,
        instrument=request.instrument,
        max_new_tokens=request.max_new_tokens,
    )


def _load(request: ProbeRequest, source: str, **more: Any) -> Checkpoint:
    from mechprobe import session

    return session.load(
        source,
        kernel=request.kernel,
        device=request.device,
        tokenizer=request.tokenizer or request.baseline,
        **more,
    ).checkpoint
