"""Tests of paired yes-or-no outcomes from their counts, for whole tables at once.

A prompt answered by a cell and by its baseline falls into one of four classes; only `lost` (from 1
to 0) and `gained` (from 0 to 1) carry information about a change. All functions take arrays and
broadcast. Differences are shares, after minus before.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe import stats

FloatArray = NDArray[np.float64]
CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
EQUIVALENCE_POINTS = 3
_STEPS = 20
"""Halvings of [0, 1] in the search for a detectable fall: to 1e-4 points."""


def mcnemar_p(lost: ArrayLike, gained: ArrayLike) -> FloatArray:
    """Two-sided exact McNemar test; 1 where nothing changed.

    Args:
        lost: Prompts that went from 1 to 0.
        gained: Prompts that went from 0 to 1.

    Source: McNemar 1947, in its exact form a binomial test of the discordant pairs.
    """
    from scipy.stats import binom

    a, b = np.asarray(lost, np.int64), np.asarray(gained, np.int64)
    found: FloatArray = np.minimum(1.0, 2 * binom.cdf(np.minimum(a, b), a + b, 0.5))
    return found


def sign_flip_p(nets: ArrayLike) -> float:
    """Exact McNemar test for clusters: under the null the net change of each flips its sign.

    With one discordant prompt per cluster this is McNemar's test. Prompts that change together are
    one piece of evidence, not several.

    Args:
        nets: Gained minus lost of each cluster, integers, shape (clusters,).

    Returns:
        P(|sum| ≥ the one seen), exactly, by convolution.
    """
    from scipy.stats import binom

    given = np.asarray(nets, np.int64)
    sizes, counts = np.unique(np.abs(given[given != 0]), return_counts=True)
    mass: FloatArray = np.ones(1)  # of the sum shifted to start at 0, in steps of 2
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        mass = np.asarray(np.convolve(mass, steps), np.float64)
    total = int(np.abs(given).sum())
    sums = 2 * np.arange(len(mass)) - total
    return min(1.0, float(mass[np.abs(sums) >= abs(int(given.sum()))].sum()))


def change_p(lost: ArrayLike, gained: ArrayLike, effect: ArrayLike) -> FloatArray:
    """Two-sided score test that as many prompts were lost as gained, over clusters.

    Sign flips take the net changes of clusters for symmetric; where large clusters fall and small
    ones rise they are not, and that test errs in up to 21 %.

    Args:
        lost: Prompts that went from 1 to 0.
        gained: Prompts that went from 0 to 1.
        effect: `stats.design_effect` of the change over clusters.

    Returns:
        At most 0.05 where `stats.difference_interval` excludes 0.
    """
    from scipy.stats import norm

    b, c, f = (np.asarray(x, np.float64) for x in (lost, gained, effect))
    found: FloatArray = 2 * norm.sf(np.abs(b - c) / np.sqrt(np.maximum((b + c) * f, 1.0)))
    return found


def equivalence_p(
    lost: ArrayLike,
    gained: ArrayLike,
    n: ArrayLike,
    margin: float = EQUIVALENCE_POINTS / 100,
    effect: ArrayLike = 1.0,
) -> FloatArray:
    """Two one-sided score tests that paired shares differ by less than ±margin.

    The error is that of the margin itself, not of the data: few changed prompts, all in one
    direction, make the data's own error too small. Clusters never make a claim easier: the score
    is divided by the root of their design effect.

    Args:
        lost: Prompts that went from 1 to 0; for scores, what all that fell lost.
        gained: The opposite.
        n: Prompts.
        margin: As a share.
        effect: `stats.design_effect` of the change over clusters.

    Source: Tango, Statistics in Medicine 17 (1998) 891-908; Liu et al., ibid. 21 (2002) 231-245;
        the score over its design effect: Rao and Scott 1992.
    """
    from scipy.stats import norm

    b, c, root = (np.asarray(x, np.float64) for x in (lost, gained, np.sqrt(effect)))
    down, up = (stats.difference_score(x, y, n, margin) for x, y in ((b, c), (c, b)))
    found: FloatArray = norm.cdf(np.maximum(down, up) / root)
    return found


def smallest_margin(discordance: ArrayLike, n: ArrayLike, power: float = POWER) -> FloatArray:
    """The smallest ±margin that TOST at 5 % shows with this power where nothing changed.

    Args:
        discordance: Share of prompts that differ, half of them each way.
        n: Prompts; those of clusters count by their design effect.
        power: Of the test.

    Returns:
        (z(0.95) + z((1 + power) / 2)) · sqrt(discordance / n), on the scale of the difference.
    """
    reach: FloatArray = _tost_reach(power) * np.sqrt(np.asarray(discordance) / np.asarray(n))
    return reach


def equivalence_discordance(
    n: ArrayLike, margin: float = EQUIVALENCE_POINTS / 100, power: float = POWER
) -> FloatArray:
    """The share of discordant prompts below which TOST at ±margin has this power."""
    return np.asarray(n, np.float64) * (margin / _tost_reach(power)) ** 2


def _tost_reach(power: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA) + norm.ppf((1 + power) / 2))


@cache
def _critical(n: int) -> NDArray[np.int64]:
    """For m = 0…n discordant prompts, the most in the smaller class that rejects; -1 for none."""
    from scipy.stats import binom

    m = np.arange(n + 1)
    at = binom.ppf(ALPHA / 2, m, 0.5)
    found: NDArray[np.int64] = np.where(binom.cdf(at, m, 0.5) > ALPHA / 2, at - 1, at).astype(int)
    return found


def fall_power(n: int, churn: ArrayLike, fall: ArrayLike) -> FloatArray:
    """Exact power of McNemar's test at 5 % to see a fall.

    Args:
        n: Prompts.
        churn: Share of prompts that change without a fall, half of them each way, shape (k,).
        fall: Share that is lost on top, shape (k,); churn + fall at most 1.

    Returns:
        Shape (k,): the probability that the test rejects in the right direction.
    """
    from scipy.special import bdtr
    from scipy.stats import binom

    c, d = (np.asarray(x, np.float64).reshape(-1, 1) for x in (churn, fall))
    m = np.arange(n + 1).reshape(1, -1)
    k = _critical(n).reshape(1, -1)
    either = np.minimum(c + d, 1.0)
    gained = np.divide(c / 2, either, out=np.zeros_like(either), where=either > 0)
    seen = np.where(k >= 0, bdtr(np.maximum(k, 0).astype(np.float64), m, gained), 0.0)
    total: FloatArray = (binom.pmf(m, n, either) * seen).sum(axis=1)
    return total


def detectable_fall(n: ArrayLike, churn: ArrayLike, power: float = POWER) -> FloatArray:
    """The smallest fall that exact McNemar at 5 % sees with this power, as a share.

    Args:
        n: Prompts, shape (k,).
        churn: Prompts that change without a fall, half of them each way, shape (k,).
        power: Of the test.

    Returns:
        Shape (k,); NaN where not even losing all that is left would be seen.
    """
    ns, cs = np.asarray(n, np.int64).ravel(), np.asarray(churn, np.int64).ravel()
    found = np.full(len(ns), np.nan)
    for size in np.unique(ns).tolist():
        mine = np.flatnonzero(ns == size)
        if not size:
            continue
        values, where = np.unique(cs[mine], return_inverse=True)
        share = values / size
        low: FloatArray = np.zeros(len(values))
        high: FloatArray = np.asarray(1 - share, np.float64)
        possible = fall_power(size, share, high) >= power
        for _ in range(_STEPS):
            middle = (low + high) / 2
            enough = fall_power(size, share, middle) >= power
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        found[mine] = np.where(possible, high, np.nan)[where]
    return found


def detectable_shift(error: ArrayLike, power: float = POWER) -> FloatArray:
    """The smallest change that a two-sided test at 5 % with this standard error sees."""
    from scipy.stats import norm

    reach = float(norm.ppf(1 - ALPHA / 2) + norm.ppf(power))
    return reach * np.asarray(error, np.float64)


def holm(p: ArrayLike) -> FloatArray:
    """Holm's adjustment over one family of tests; NaN belongs to none and stays NaN.

    Source: Holm 1979, through `statsmodels.stats.multitest.multipletests`.
    """
    from statsmodels.stats.multitest import multipletests

    given = np.asarray(p, np.float64)
    found: FloatArray = np.full(given.shape, np.nan)
    there = np.isfinite(given)
    if there.any():
        found[there] = np.asarray(multipletests(given[there], method="holm")[1], np.float64)
    return found
