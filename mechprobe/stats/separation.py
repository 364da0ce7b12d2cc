"""How far two groups of scores lie apart: ROC-AUC and d', with intervals over clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.stats.clusters import Clusters, IntArray, cluster_codes
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

    DeLong's variance, whose parts are summed over each cluster first. Where the sides separate
    completely it is 0; the open end is then Wilson's bound for as many successes as the side with
    fewer clusters has.

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
    error = _error((above - area) / len(a), (below - area) / len(b), first, second)
    middle = np.log(area / (1 - area))
    half = float(student.ppf(0.975, groups - 1)) * error / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half)))) for side in (-1, 1))
    return Estimate(area, low, high, n)


def dprime_estimate(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    clusters: tuple[Clusters, Clusters] | None = None,
) -> Estimate | None:
    """`dprime` with a 95 % interval: Student's, by a jackknife that leaves out whole clusters.

    Args:
        positive: Scores, shape (m,).
        negative: Scores, shape (k,).
        clusters: As in `auroc_estimate`.

    Returns:
        None where `dprime` is, and with fewer than three clusters on a side.

    Source: Efron and Stein 1981.
    """
    from scipy.stats import t as student

    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    value = dprime(a, b)
    first, second = _codes_of(clusters, len(a), len(b))
    groups = min(len(set(side.tolist())) for side in (first, second))
    if value is None or groups < 3:
        return None
    total = int(max(first.max(), second.max())) + 1
    means, squares = [], []
    for side, codes in ((a, first), (b, second)):
        x = side - side.mean()
        n, sums, powers = (
            part.sum() - part
            for part in (np.bincount(codes, x**k, minlength=total) for k in (0, 1, 2))
        )
        means.append(side.mean() + sums / n)
        squares.append((powers - sums**2 / n) / (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (means[0] - means[1]) / np.sqrt((squares[0] + squares[1]) / 2)
    error = float(np.sqrt((total - 1) / total * ((without - without.mean()) ** 2).sum()))
    if not np.isfinite(error):
        return None
    half = float(student.ppf(0.975, groups - 1)) * error
    return Estimate(value, value - half, value + half, len(a) + len(b))


def _codes_of(
    clusters: tuple[Clusters, Clusters] | None, m: int, k: int
) -> tuple[IntArray, IntArray]:
    both = cluster_codes(None if clusters is None else [*clusters[0], *clusters[1]], m + k)
    return both[:m], both[m:]


def _error(a: FloatArray, b: FloatArray, first: IntArray, second: IntArray) -> float:
    """Standard error of a sum of centred influences of two sides, over clusters.

    Source: Obuchowski 1997, with the factors of the clusters on each side and of all.
    """
    groups = int(max(first.max(), second.max())) + 1
    x, y = (
        np.bincount(codes, weights=part, minlength=groups)
        for part, codes in ((a, first), (b, second))
    )
    i, j = (len(set(codes.tolist())) for codes in (first, second))
    variance = (
        i / (i - 1) * float(x @ x)
        + j / (j - 1) * float(y @ y)
        + 2 * groups / (groups - 1) * float(x @ y)
    )
    return float(np.sqrt(max(variance, 0.0)))
