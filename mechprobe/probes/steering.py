"""Does a direction cause refusals? Text generated under ablation and under addition.

Every intervention stands beside the same one with a random direction, orthogonal to the real one
and of its length. Source of both interventions: Arditi et al. 2024 (arXiv 2406.11717).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.behavior.refusal import Rate, refusal_rate
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.activations import Intervention
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts
    from mechprobe.probes.direction import RefusalDirection


@dataclass(frozen=True, slots=True)
class CausalCheck:
    """Refusal rates by generation on held-out prompts, read by one named instrument."""

    instrument: str
    harmful: Rate
    """As the model is."""
    harmful_ablated: Rate
    """With the direction ablated at every layer and position."""
    harmful_ablated_random: Rate
    """The same with a random direction orthogonal to it: the control."""
    harmless: Rate
    harmless_added: Rate
    """With the raw direction added at its layer's block input."""
    harmless_added_random: Rate
    """The same with a random orthogonal direction of equal length: the control."""


def causal_check(
    checkpoint: Checkpoint,
    direction: RefusalDirection,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    clusters: Mapping[str, Sequence[Any]] | None = None,
    instrument: str = "hard",
    max_new_tokens: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> CausalCheck:
    """Ablate the direction on harmful prompts, add it on harmless ones, generate, read.

    `clusters` says by prompt set (`evaluate/harmful`, `evaluate/harmless`) what belongs together;
    `progress` is told of rates done and in all.

    Raises:
        SpecError: The direction has no length.
    """
    import torch

    from mechprobe.activations import Ablate, Add
    from mechprobe.generation import open_engine

    done = itertools.count()

    def rate(prompts: EncodedPrompts, interventions: Sequence[Intervention] = ()) -> Rate:
        progress(next(done), 6)
        name = "evaluate/harmful" if prompts is harmful else "evaluate/harmless"
        with open_engine(checkpoint, interventions=interventions) as engine:
            answers = engine.generate(prompts.ids, max_new_tokens=max_new_tokens)
        return refusal_rate(
            [answer.text for answer in answers], instrument, clusters=(clusters or {}).get(name)
        )

    real = torch.from_numpy(direction.vector)
    ablated = [Ablate(real)]
    control = torch.from_numpy(random_orthogonal(direction.vector, seed))
    return CausalCheck(
        instrument=instrument,
        harmful=rate(harmful),
        harmful_ablated=rate(harmful, ablated),
        harmful_ablated_random=rate(harmful, [Ablate(control)]),
        harmless=rate(harmless),
        harmless_added=rate(harmless, [Add(real, layer=direction.layer)]),
        harmless_added_random=rate(harmless, [Add(control, layer=direction.layer)]),
    )


def random_orthogonal(vector: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A random vector orthogonal to `vector` and of its length, shape (width,)."""
    target = vector.astype(np.float64)
    draw = np.random.default_rng(seed).normal(size=target.shape)
    draw -= target * (draw @ target) / (target @ target)
    scaled: NDArray[np.float64] = draw * np.linalg.norm(target) / np.linalg.norm(draw)
    return scaled.astype(np.float32)
