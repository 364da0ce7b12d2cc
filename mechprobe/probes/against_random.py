"""One chosen set of neurons against random sets of its kind: difference, interval and p in one.

A random set differs from the next one, so that a chosen set may return more than their *mean* and
still be nothing special. What is asked is whether it returns more than *another random set* would:
the spread between the draws belongs into the interval, and the p belongs to that interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.errors import SpecError
from mechprobe.stats import PairedShift

FloatArray = NDArray[np.float64]
ROUNDING = 1e-4
"""Nats. Float32 logits give no log-odds more exactly than that: a smaller difference is none."""


def settled(after: FloatArray, before: FloatArray) -> FloatArray:
    """What an intervention made of `before`: `before` itself where nothing moved beyond rounding.

    Args:
        after: Log-odds in nats, shape (n,).
        before: The same without the intervention.
    """
    return before if float(np.abs(after - before).max()) < ROUNDING else after


def excess_over_random(
    chosen: FloatArray, random: FloatArray, clusters: Sequence[Any] | None = None
) -> tuple[PairedShift, float | None]:
    """Mean over prompts of the chosen set minus the mean of the random sets.

    The squared standard error has two parts. Between prompts: s²(chosen - mean of the draws) / n.
    Between draws: (1 + 1/k) times the variance of what a draw returns on all prompts there are, the
    variance of one further draw around the mean of k (Crawford and Howell 1998, a single case
    against a sample of controls); it is that of the k means less what they owe to these n prompts,
    the interaction mean square / n. Degrees of freedom after Satterthwaite (1946); t interval at
    95 % and two-sided p: the interval excludes 0 exactly where p < 0.05.

    Prompts of one cluster count as one, which returns their mean times its share of the prompts.

    Where no draw differs from the chosen set by more than `ROUNDING` on any prompt, what differs is
    the order of summation: the difference is 0 and there is no p.

    Args:
        chosen: By prompt, in nats, shape (n,).
        random: By draw and prompt, shape (k, n).
        clusters: To which cluster each prompt belongs; None makes each its own.

    Raises:
        SpecError: Fewer than two prompts or two draws, which have no spread.
    """
    from scipy.stats import t

    own = stats.cluster_codes(clusters, len(chosen))
    groups = int(own.max(initial=-1)) + 1
    shared = np.eye(groups)[own] * (groups / max(len(own), 1))
    n, chosen, random = len(own), chosen @ shared, random @ shared
    draws, prompts = random.shape
    if min(draws, prompts) < 2:
        raise SpecError(f"patching: {draws} random draws on {prompts} prompts; take 2 at least")
    if float(np.abs(chosen - random).max()) < ROUNDING:
        return PairedShift(0.0, 0.0, 0.0, n, float(random.mean()), None), None
    differences = chosen - random.mean(axis=0)
    value = float(differences.mean())
    spread = float(differences.std(ddof=1))
    between_prompts = spread**2 / prompts
    means = random.mean(axis=1)
    rest = random - means[:, None] - random.mean(axis=0) + random.mean()
    owed = float((rest**2).sum()) / ((draws - 1) * (prompts - 1)) / prompts
    seen, owed = ((1 + 1 / draws) * each for each in (float(means.var(ddof=1)), owed))
    if seen <= owed:  # the draws differ by no more than their prompts make them
        seen = owed = 0.0
    error = float(np.sqrt(between_prompts + seen - owed))
    if error == 0:
        low = high = value
        p = 0.0
    else:
        freedom = error**4 / (
            between_prompts**2 / (prompts - 1)
            + seen**2 / (draws - 1)
            + owed**2 / ((draws - 1) * (prompts - 1))
        )
        half = float(t.ppf(0.975, freedom)) * error
        low, high = value - half, value + half
        p = float(2 * t.sf(abs(value) / error, freedom))
    effect = value / spread if spread > 0 else None
    return PairedShift(value, low, high, n, float(random.mean()), effect), p
