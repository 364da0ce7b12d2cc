"""Causal check: the baseline's activations put back at the safety neurons of a quantized model.

If the error at these neurons is what costs refusals, taking it away there must bring refusal
log-odds back, and more so than at as many random neurons of the same scale. Patched are the last
tokens of the prompt, the template's after the instruction, at all of the probe's layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechprobe import stats
from mechprobe.activations import Patch, next_token_logits
from mechprobe.activations.batching import groups, length_sorted
from mechprobe.activations.restart import Restart, first_block
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
AS_IT_IS = "as it is"
NeuronSet = Mapping[str, IntArray | None]
"""Dimensions to patch by hook point; None is all of them."""


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
        progress: Told of sets of neurons done and in all, one for each batch of prompts.

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
    sets = neuron_sets(profiles, cutoff, draws, seed)
    run = _Patches(checkpoint, prompts, baseline, profiles, positions, refusal_tokens)
    odds = run.log_odds(sets, [cutoff, draws, batch_size, seed], batch_size, partial, progress)
    before = refusal_log_odds(baseline.logits(ERRORS), refusal_tokens)
    cell = settled(odds[AS_IT_IS], before)
    after = {name: settled(odds[name], cell) for name in sets}

    def shift_by(name: str) -> PairedShift | None:
        return stats.paired_shift(after[name], cell, clusters=clusters)

    shift = stats.paired_shift(cell, before, clusters=clusters)
    whole, everything = shift_by("whole"), shift_by("everything")
    if shift is None or whole is None or everything is None:
        return None
    plain = Patching(
        kind=profiles[0].kind,
        cutoff=cutoff,
        layers=tuple(each.layer for each in profiles),
        positions=positions,
        n_prompts=len(prompts),
        n_neurons=sum(int(each.safety(cutoff).sum()) for each in profiles),
        n_unmatched=sum(len(each.matched(cutoff).unmatched) for each in profiles),
        margin_lost=shift.opposite(),
        whole=whole,
        everything=everything,
        matched=None,
        random=(),
        excess=None,
        p=None,
    )
    if "matched" not in sets:
        return plain
    random = np.array([after[f"random {k}"] for k in range(draws)])
    excess, p = excess_over_random(after["matched"] - cell, random - cell, clusters)
    return replace(
        plain,
        matched=shift_by("matched"),
        random=tuple((random - cell).mean(axis=1).tolist()),
        excess=excess,
        p=p,
    )


def neuron_sets(
    profiles: Sequence[Profile], cutoff: float, draws: int, seed: int
) -> dict[str, NeuronSet]:
    """Name the sets of neurons to patch.

    Args:
        profiles: Of one kind.
        cutoff: Share of safety neurons.
        draws: Random sets.
        seed: Of the draws.

    Returns:
        All safety neurons (`whole`), all neurons (`everything`) and, where enough safety neurons
        have a match, those (`matched`) and as many others of their scale (`random 0`, …).
    """
    sets: dict[str, NeuronSet] = {
        "whole": {each.point: np.flatnonzero(each.safety(cutoff)) for each in profiles},
        "everything": {each.point: None for each in profiles},
    }
    matched = {each.point: each.matched(cutoff) for each in profiles}
    found = sum(len(each.safety) for each in matched.values())
    unmatched = sum(len(each.unmatched) for each in matched.values())
    if found < MIN_MATCHED * (found + unmatched):
        return sets
    sets["matched"] = {point: each.safety for point, each in matched.items()}
    drawn = {
        point: draw_controls(each, draws, seed + k)
        for k, (point, each) in enumerate(matched.items())
    }
    for k in range(draws):
        sets[f"random {k}"] = {point: dims[k] for point, dims in drawn.items()}
    return sets


class _Patches:
    """Refusal log-odds under patches, batch by batch.

    Patched are the last tokens of a prompt, from the first of the probe's layers on. So a batch is
    read once, and each set of neurons begins there; memory holds one batch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: EncodedPrompts,
        baseline: Observation,
        profiles: Sequence[Profile],
        positions: tuple[int, ...],
        refusal_tokens: Sequence[int],
    ) -> None:
        self._checkpoint, self._prompts, self._profiles = checkpoint, prompts, profiles
        self._positions, self._tokens = positions, list(map(int, refusal_tokens))
        # in the cell's units: AWQ divides a neuron by its gain
        self._values = {
            each.point: (baseline.values(ERRORS, each.point, positions) / each.gain).astype(
                np.float32
            )
            for each in profiles
        }
        everywhere = self._patches({each.point: None for each in profiles}, [0])
        self._layer = first_block(checkpoint, everywhere)

    def log_odds(
        self,
        sets: Mapping[str, NeuronSet],
        settings: Sequence[float],
        batch_size: int,
        partial: PartialResults,
        progress: Progress,
    ) -> dict[str, FloatArray]:
        """Log-odds in nats by set, shape (prompt,), and of the cell `AS_IT_IS`."""
        batches = groups(length_sorted([len(ids) for ids in self._prompts.ids]), batch_size)
        odds: dict[str, FloatArray] = {
            name: np.empty(len(self._prompts)) for name in (AS_IT_IS, *sets)
        }
        for k, rows in enumerate(batches):
            chosen = list(rows)
            read = self._reader(rows)
            as_it_is = odds[AS_IT_IS][chosen] = read({})
            unfinished = partial.open(
                f"patching-{self._profiles[0].kind}-{k}",
                self._checkpoint,
                as_it_is,
                *(each[chosen] for each in self._values.values()),
                *(array for each in self._profiles for array in each.arrays().values()),
                [self._tokens, *settings],
            )
            for done, (name, neurons) in enumerate(sets.items(), k * len(sets)):
                progress(done, len(batches) * len(sets))
                odds[name][chosen] = unfinished.get(name, read, neurons)
        return odds

    def _reader(self, rows: Sequence[int]) -> Callable[[NeuronSet], FloatArray]:
        """What gives the log-odds of some prompts; called without neurons first."""
        restart = Restart(self._checkpoint, [self._layer], len(self._positions))
        prompts = self._prompts.select(rows)

        def read(neurons: NeuronSet) -> FloatArray:
            logits = next_token_logits(
                self._checkpoint,
                prompts,
                batch_size=len(rows),
                interventions=self._patches(neurons, rows),
                restart=restart,
            )
            return refusal_log_odds(logits.double().numpy(), self._tokens)

        return read

    def _patches(self, neurons: NeuronSet, rows: Sequence[int]) -> list[Patch]:
        found = []
        for point, dims in neurons.items():
            if dims is not None and not len(dims):
                continue
            values = self._values[point][list(rows)]
            chosen = values if dims is None else np.ascontiguousarray(values[..., dims])
            found.append(
                Patch(
                    point,
                    torch.from_numpy(chosen),
                    self._positions,
                    None if dims is None else tuple(dims.tolist()),
                )
            )
        return found
