"""How far two groups of scores lie apart: ROC-AUC and d', with intervals over clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.stats.clusters import Clusters, IntArray, cluster_codes, linear_error
from mechprobe.stats.estimates import Estimate
from mechprobe.stats.shares import wilson

FloatArray = NDArray[np.float64]


def auroc(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Area under the ROC curve of scores: P(positive > negative), ties counted half.

    Computed from the Mann-Whitney U statistic; None where either side is empty.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if not len(a) or not len(b):
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a, b).statistic / (len(a) * len(b)))


def dprime(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Sensitivity index: difference of means over the root mean of the two sample variances.

    None where a side has fewer than two values or neither side varies.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if len(a) < 2 or len(b) < 2:
        return None
    spread = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    return float(a.mean() - b.mean()) / spread if spread > 0 else None


def auroc_estimate(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    clusters: tuple[Clusters, Clusters] | None = None,
) -> Estimate | None:
    """`auroc` with a 95 % interval over clusters, on the logit scale.

    DeLong's variance, whose parts are summed over each cluster first (`linear_error`). Where the
    sides separate completely it is 0; the open end is then Wilson's bound for as many successes as
    the side with fewer clusters has.

    Args:
        positive: Scores, shape (m,).
        negative: Scores, shape (k,).
        clusters: Of the positive and of the negative scores; one may hold scores of both.

    Returns:
        None with fewer than two clusters on a side.

    Source: DeLong et al. 1988; clusters: Obuchowski 1997; logit: Qin and Hotilovac 2008.
    """
    from scipy.stats import rankdata
    from scipy.stats import t as student

    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    area = auroc(a, b)
    if area is None:
        return None
    first, second = _codes_of(clusters, len(a), len(b))
    groups = min(len(set(side.tolist())) for side in (first, second))
    if groups < 2:
        return None
    n = len(a) + len(b)
    if area in (0.0, 1.0):
        bound, _ = wilson(groups, groups)
        return Estimate(area, *((bound, 1.0) if area else (0.0, 1 - bound)), n)
    ranks = rankdata(np.concatenate([a, b]))
    above = (ranks[: len(a)] - rankdata(a)) / len(b)  # share of the negative ones below each
    below = 1 - (ranks[len(a) :] - rankdata(b)) / len(a)
    error, freedom = _error((above - area) / len(a), (below - area) / len(b), first, second)
    middle = np.log(area / (1 - area))
    half = float(student.ppf(0.975, freedom)) * error / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half)))) for side in (-1, 1))
    return Estimate(area, low, high, n)


def dprime_estimate(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    clusters: tuple[Clusters, Clusters] | None = None,
) -> Estimate | None:
    """`dprime` with a 95 % interval over clusters: Student's, by its influence function.

    Args:
        positive: Scores, shape (m,).
        negative: Scores, shape (k,).
        clusters: As in `auroc_estimate`.

    Returns:
        None where `dprime` is, and with fewer than three clusters on a side.
    """
    from scipy.stats import t as student

    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    value = dprime(a, b)
    first, second = _codes_of(clusters, len(a), len(b))
    groups = min(len(set(side.tolist())) for side in (first, second))
    if value is None or groups < 3:
        return None
    spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    x, y = (
        sign * z / (len(z) - 1) - value * (z**2 - z @ z / len(z)) / (4 * (len(z) - 1))
        for sign, z in ((1, (a - a.mean()) / spread), (-1, (b - b.mean()) / spread))
    )
    error, freedom = _error(x, y, first, second)
    half = float(student.ppf(0.975, freedom)) * error
    return Estimate(value, value - half, value + half, len(a) + len(b))


def _codes_of(
    clusters: tuple[Clusters, Clusters] | None, m: int, k: int
) -> tuple[IntArray, IntArray]:
    both = cluster_codes(None if clusters is None else [*clusters[0], *clusters[1]], m + k)
    return both[:m], both[m:]


def _error(a: FloatArray, b: FloatArray, first: IntArray, second: IntArray) -> tuple[float, float]:
    """Standard error of a sum of centred influences of two sides, and its degrees of freedom."""
    return linear_error((a, np.ones_like(a), first), (b, np.ones_like(b), second))
