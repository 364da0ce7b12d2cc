"""Causal check: the baseline's activations put back at the safety neurons of a quantized model.

If the error at these neurons is what costs refusals, taking it away there must bring refusal
log-odds back, and more so than at as many random neurons of the same scale. Patched are the last
tokens of the prompt, the template's after the instruction, at all of the probe's layers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechprobe import stats
from mechprobe.activations import Patch, next_token_logits
from mechprobe.errors import CheckpointError, SpecError
from mechprobe.models.rendering import EncodedPrompts, require_parity
from mechprobe.probes.against_random import excess_over_random, settled
from mechprobe.probes.matching import MIN_MATCHED, FloatArray, IntArray, draw_controls
from mechprobe.probes.neuron_errors import ERRORS, Kind, Profile
from mechprobe.probes.partial import NOTHING_KEPT, PartialResults
from mechprobe.probes.refusal_tokens import refusal_log_odds
from mechprobe.progress import Progress, silent
from mechprobe.stats import PairedShift

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.probes.observation import Observation

DRAWS = 20


@dataclass(frozen=True, slots=True)
class Patching:
    """Refusal log-odds (nats) that came back: patched minus as it is, paired by prompt."""

    kind: Kind
    cutoff: float
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    n_prompts: int
    n_neurons: int
    """Safety neurons, all layers together."""
    n_unmatched: int
    """Of them, those with no other of their scale."""
    margin_lost: PairedShift
    """Baseline minus cell, as in the entropy probe: above 0 there is something to bring back."""
    whole: PairedShift
    """At all safety neurons."""
    everything: PairedShift
    """At every neuron of these layers: the most that patching there can do."""
    matched: PairedShift | None
    """At the safety neurons that have a match; this and what follows is None below 80 % of them."""
    random: tuple[float, ...]
    """Mean of each draw of as many random neurons, one from each matched set."""
    excess: PairedShift | None
    """Matched safety neurons minus random ones; its interval knows that random sets differ, see
    `excess_over_random`."""
    p: float | None
    """Two-sided, of `excess`: below 0.05 exactly where its interval excludes 0. None also where no
    set of neurons moved anything beyond rounding."""

    @property
    def random_mean(self) -> float | None:
        """Mean over the draws."""
        return float(np.mean(self.random)) if self.random else None

    @property
    def random_interval(self) -> tuple[float, float] | None:
        """Middle 95 % of the draws."""
        if not self.random:
            return None
        low, high = np.percentile(self.random, [2.5, 97.5])
        return float(low), float(high)

    @property
    def share(self) -> float | None:
        """Of the loss, how much the safety neurons returned; None where no loss is certain."""
        lost = self.margin_lost
        return self.whole.value / lost.value if lost.low > 0 else None


def patch_back(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    baseline: Observation,
    profiles: Sequence[Profile],
    refusal_tokens: Sequence[int],
    *,
    cutoff: float = 0.05,
    draws: int = DRAWS,
    batch_size: int = 16,
    clusters: Sequence[Any] | None = None,
    seed: int = 0,
    partial: PartialResults = NOTHING_KEPT,
    progress: Progress = silent,
) -> Patching | None:
    """Patch one kind of neuron and read the refusal log-odds.

    Args:
        checkpoint: The quantized cell, with a graph.
        prompts: `evaluate/harmful`, as observed.
        baseline: Observed at the probe's points and at all post-instruction positions.
        profiles: Of one kind, from `measure`.
        refusal_tokens: Ids, of the baseline.
        cutoff: Share of safety neurons.
        draws: Random sets of matched neurons, 2 at least.
        batch_size: Prompts in memory at once.
        clusters: To which cluster each prompt belongs; None makes each its own.
        seed: Of the draws.
        partial: Where sets of neurons are kept as they are patched.
        progress: Told of sets of neurons done and in all.

    Returns:
        None for a single prompt, which has no interval.

    Raises:
        CheckpointError: No graph.
        ParityError: The baseline saw other prompts.
        SpecError: No refusal tokens, no profiles, or a single draw.
        StoreError: The baseline was not observed at these positions.
    """
    if checkpoint.module is None:
        raise CheckpointError(f"{checkpoint.source}: patching needs a graph; load it as dense")
    if not refusal_tokens or not profiles:
        raise SpecError("patching needs refusal tokens and measured neurons")
    require_parity(baseline.digest(ERRORS), prompts.digest, f"patching, {ERRORS}")
    positions = tuple(range(-prompts.post_instruction, 0))
    # in the cell's units: AWQ divides a neuron by its gain
    values = {
        each.point: (baseline.values(ERRORS, each.point, positions) / each.gain).astype(np.float32)
        for each in profiles
    }

    def returned(neurons: Mapping[str, IntArray | None]) -> FloatArray:
        patches = [
            Patch(
                point,
                torch.from_numpy(
                    values[point]
                    if dims is None
                    else np.ascontiguousarray(values[point][..., dims])
                ),
                positions,
                None if dims is None else tuple(dims.tolist()),
            )
            for point, dims in neurons.items()
            if dims is None or len(dims)
        ]
        logits = next_token_logits(
            checkpoint, prompts, batch_size=batch_size, interventions=patches
        )
        return refusal_log_odds(logits.double().numpy(), refusal_tokens)

    before = refusal_log_odds(baseline.logits(ERRORS), refusal_tokens)
    unpatched = returned({})
    cell = settled(unpatched, before)
    unfinished = partial.open(
        f"patching-{profiles[0].kind}",
        checkpoint,
        unpatched,
        *values.values(),
        *(array for each in profiles for array in each.arrays().values()),
        [list(map(int, refusal_tokens)), cutoff, draws, batch_size, seed],
    )
    names = ["whole", "everything", "matched", *(f"random {k}" for k in range(draws))]

    def patched(name: str, neurons: Mapping[str, IntArray | None]) -> FloatArray:
        progress(names.index(name), len(names))
        return settled(unfinished.get(name, returned, neurons), cell)

    def shift_by(name: str, neurons: Mapping[str, IntArray | None]) -> PairedShift | None:
        return stats.paired_shift(patched(name, neurons), cell, clusters=clusters)

    shift = stats.paired_shift(cell, before, clusters=clusters)
    safety = {each.point: np.flatnonzero(each.safety(cutoff)) for each in profiles}
    whole = shift_by("whole", safety)
    everything = shift_by("everything", {each.point: None for each in profiles})
    if shift is None or whole is None or everything is None:
        return None
    sets = {each.point: each.matched(cutoff) for each in profiles}
    found = sum(len(each.safety) for each in sets.values())
    unmatched = sum(len(each.unmatched) for each in sets.values())
    plain = Patching(
        kind=profiles[0].kind,
        cutoff=cutoff,
        layers=tuple(each.layer for each in profiles),
        positions=positions,
        n_prompts=len(prompts),
        n_neurons=found + unmatched,
        n_unmatched=unmatched,
        margin_lost=shift.opposite(),
        whole=whole,
        everything=everything,
        matched=None,
        random=(),
        excess=None,
        p=None,
    )
    if found < MIN_MATCHED * (found + unmatched):
        return plain
    matched = patched("matched", {point: each.safety for point, each in sets.items()})
    drawn = {
        point: draw_controls(each, draws, seed + k) for k, (point, each) in enumerate(sets.items())
    }
    random = np.array(
        [
            patched(f"random {k}", {point: dims[k] for point, dims in drawn.items()})
            for k in range(draws)
        ]
    )
    excess, p = excess_over_random(matched - cell, random - cell, clusters)
    return replace(
        plain,
        matched=stats.paired_shift(matched, cell, clusters=clusters),
        random=tuple((random - cell).mean(axis=1).tolist()),
        excess=excess,
        p=p,
    )
