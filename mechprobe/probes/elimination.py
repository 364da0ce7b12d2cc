"""Which candidates need not be scored to the end: the winner of all prompts from fewer passes.

A race: a candidate is out as soon as the prompts that it has met leave no other outcome, whatever
the remaining ones give. Refusal log-odds lie between two numbers by their definition, and so does
the KL of a prompt, so that the mean over all prompts has a floor from those seen. A filter that the
floor is beyond takes the candidate; a floor above the bypass of one that passed every filter beats
it. Nothing is estimated: what cannot be excluded is computed.

Source: racing (Maron and Moore 1994), with bounds that hold for certain in place of confidence
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechprobe.probes.selection import INDUCE_THRESHOLD, KL_THRESHOLD
from mechprobe.progress import Progress, silent

FloatArray = NDArray[np.float64]

SCORES = ("kl", "induce", "bypass")
FIRST = 4
"""Prompts by which it is guessed how many more would take a candidate out."""
SLACK = 1e-6
"""Nats. A floor must be beyond a limit by more, since sums in float32 depend on their order."""


class PartialMean:
    """Mean of a score over all prompts, some of which were run."""

    def __init__(self, lows: FloatArray, prior: float, share: float = 1.0) -> None:
        """Know no value yet.

        Args:
            lows: The least that each prompt can give, shape (prompt,).
            prior: What a prompt is expected to give before any was run.
            share: Of a whole pass that a prompt costs.
        """
        self.share = share
        self._prior = prior
        self._values = np.array(lows, np.float64)
        self._seen = np.zeros(len(lows), dtype=bool)

    def add(self, rows: NDArray[np.intp], values: FloatArray) -> None:
        """Note what some prompts gave."""
        self._values[rows], self._seen[rows] = values, True

    @property
    def unseen(self) -> NDArray[np.intp]:
        """Prompts that were not run."""
        return np.flatnonzero(~self._seen)

    @property
    def seen(self) -> bool:
        """Whether any prompt was run."""
        return bool(self._seen.any())

    @property
    def floor(self) -> float:
        """The least that the mean can be; the mean itself where every prompt was run."""
        return float(self._values.mean())

    @property
    def value(self) -> float:
        """The mean; NaN where a prompt is missing."""
        return self.floor if self._seen.all() else math.nan

    def to_go(self, limit: float) -> float:
        """How many more prompts would lift the floor beyond a limit if they are like those before.

        Infinite where not even all of them would.
        """
        unseen = self.unseen
        if not len(unseen) or math.isinf(limit):
            return math.inf
        expected = float(self._values[self._seen].mean()) if self.seen else self._prior
        gain = (expected - float(self._values[unseen].mean())) / len(self._values)
        if gain <= 0:
            return math.inf
        count = max(1.0, math.ceil((limit + SLACK - self.floor) / gain))
        return count if count <= len(unseen) else math.inf


@dataclass(slots=True, eq=False)
class Candidate:
    """One direction in the race."""

    position: int
    layer: int
    scores: Mapping[str, PartialMean]
    """By name of `SCORES`; each is bad where it is high: `induce` is the refusal log-odds with the
    direction added, times -1."""
    out: str = ""
    """The score that took it out of the race."""

    @property
    def row(self) -> tuple[int, int, float, float, float, str]:
        """Position, layer, means of bypass, induce and KL (NaN where incomplete), and `out`."""
        kl, induce, bypass = (self.scores[name].value for name in SCORES)
        return self.position, self.layer, bypass, -induce, kl, self.out


Run = Callable[[Candidate, str, NDArray[np.intp]], FloatArray]
"""Gives a score of some prompts, in their order."""


def race(candidates: Sequence[Candidate], run: Run, progress: Progress = silent) -> None:
    """Run each candidate until it is out or complete; the winner is among the complete ones.

    Each meets some prompts first, so that the most promising is completed first and others are held
    against it.

    Args:
        candidates: Those that no filter took beforehand; get their scores and what took them out.
        run: The model.
        progress: Told of candidates begun and ended, and of all of both.
    """
    best, total = math.inf, 2 * len(candidates)
    for done, each in enumerate(candidates):
        progress(done, total)
        _step(each, run, best)
    for done, each in enumerate(sorted(candidates, key=_promise), len(candidates)):
        progress(done, total)
        while not each.out and _step(each, run, best):
            pass
        _, _, bypass, induce, kl, _ = each.row
        if kl <= KL_THRESHOLD and induce >= INDUCE_THRESHOLD:
            best = min(best, bypass)


def _promise(candidate: Candidate) -> float:
    """What to complete first: where the direction induces most."""
    return candidate.scores["induce"].floor


def _step(candidate: Candidate, run: Run, best: float) -> bool:
    """Run one score on some more prompts, the one that may take the candidate out soonest.

    Returns:
        False where the candidate is out or complete.
    """
    limits = {"kl": KL_THRESHOLD, "induce": -INDUCE_THRESHOLD, "bypass": best}
    for name in SCORES:
        if candidate.scores[name].floor > limits[name] + SLACK:
            candidate.out = name
            return False
    open_ = [name for name in SCORES if len(candidate.scores[name].unseen)]
    if not open_:
        return False

    def cost(name: str) -> tuple[float, bool]:
        score = candidate.scores[name]
        return score.share * score.to_go(limits[name]), score.seen

    name = min(open_, key=cost)
    score = candidate.scores[name]
    wanted = score.to_go(limits[name]) if score.seen else FIRST
    rows = score.unseen[: int(min(wanted, len(score.unseen)))]
    score.add(rows, run(candidate, name, rows))
    return True
