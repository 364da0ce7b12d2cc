"""Intervals of shares, and of means of numbers between 0 and 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.stats.clusters import Clusters, IntArray, cluster_codes, effective

FloatArray = NDArray[np.float64]
_RARE = 5
"""Effective prompts below which a count is not near normal."""


def wilson(count: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as shares in [0, 1]; (0, 1) at n = 0.

    Source: Wilson 1927, through `statsmodels.stats.proportion.proportion_confint`.
    """
    if n == 0:
        return 0.0, 1.0
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    return min(float(low), count / n), max(float(high), count / n)  # at 0 and n rounding errs


def effective_size(values: ArrayLike, clusters: Clusters | None = None) -> float:
    """Prompts at which a share would have the variance of a mean of numbers in [0, 1].

    Of independent outcomes, 0 or 1, it is their number; of values that are all alike the number of
    clusters.
    """
    x = np.asarray(values, np.float64)
    return _size(x, cluster_codes(clusters, len(x)))


def _size(values: FloatArray, codes: IntArray) -> float:
    if np.ptp(values) == 0:
        return float(len(np.unique(codes)))
    n, mean = len(values), min(max(float(values.mean()), 0.0), 1.0)
    within = n * mean * (1 - mean)
    return n / effective(values, codes, within)


def share_interval(values: FloatArray, codes: IntArray) -> tuple[float, float]:
    """95 % interval of a mean of numbers in [0, 1]: Wilson's for the effective number of prompts.

    Clusters make few prompts of many, and where fewer than `_RARE` make a share, or what it lacks
    of 1, Wilson's misses it in up to 17 %: of clusters it then reaches to Clopper and Pearson's.

    Source: Dean and Pagano 2015; rare: Korn and Graubard 1998.
    """
    from statsmodels.stats.proportion import proportion_confint

    mean, n = min(max(float(values.mean()), 0.0), 1.0), _size(values, codes)
    low, high = wilson(mean * n, n)
    if codes.max() + 1 < len(codes) and 0 < n * min(mean, 1 - mean) < _RARE:
        least, most = proportion_confint(mean * n, n, method="beta")
        low, high = min(low, float(least)), max(high, float(most))
    return low, high
