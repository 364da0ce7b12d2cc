"""Whether a baseline can stand for the model before quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechprobe.models.rendering import require_parity
from mechprobe.preflight import require_same_model

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts
    from mechprobe.probes.observation import Observation

UNQUANTIZED = frozenset({"FP64", "FP32", "FP16", "BF16", "F64", "F32", "F16"})
"""Precisions of checkpoints and GGUF files whose weights nothing rounded to fewer than 16 bits."""


def baseline_warnings(precision: str | None) -> tuple[str, ...]:
    """What to say of a baseline of this precision; None is no baseline.

    Comparing two quantized checkpoints is a fair question, but it is not the usual one, and numbers
    near zero then do not mean that quantization changed nothing.
    """
    if precision is None or precision in UNQUANTIZED:
        return ()
    return (
        f"the baseline is itself quantized ({precision}): every difference is from that "
        "checkpoint, not from the unquantized model",
    )


def require_comparable(
    checkpoint: Checkpoint,
    prompts: Mapping[str, EncodedPrompts],
    baseline: Observation,
    *,
    logits: bool,
) -> None:
    """Refuse a baseline that is another model, or saw other prompts, before a pass is made.

    Args:
        checkpoint: What is to be probed.
        prompts: Its prompt sets.
        baseline: The finished observation that it is compared with.
        logits: Whether rows of logits are compared.

    Raises:
        ArchitectureError: The baseline is another model; the message names both.
        VocabularyError: Its vocabulary has another size.
        ParityError: It saw other token ids.
    """
    from mechprobe.probes.observation import shape_of

    require_same_model(shape_of(checkpoint), baseline.facts.shape, logits=logits)
    for name in set(prompts).intersection(baseline.prompt_sets):
        require_parity(baseline.digest(name), prompts[name].digest, f"probes, {name}")
