"""ROC-AUC of a metric over two kinds of rows: with its interval, and within models alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.analysis.grouped import Groups, ranks_within

FloatArray = NDArray[np.float64]


def mann_whitney(values: FloatArray, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """U of the positive rows, ties counted half, and the ROC-AUC, U / (positive · negative).

    Source: Mann and Whitney 1947, through `scipy.stats.mannwhitneyu`.
    """
    from scipy.stats import mannwhitneyu

    u = float(mannwhitneyu(values[positive], values[~positive], method="asymptotic").statistic)
    return u, u / (int(positive.sum()) * int((~positive).sum()))


def auc_within(values: FloatArray, positive: NDArray[np.bool_], groups: Groups) -> float | None:
    """ROC-AUC over pairs of rows of one model; None where no model has both kinds.

    A metric that differs between models separates their rows without knowing anything about them;
    these pairs leave that out.
    """
    flags = positive.astype(np.float64)
    ranks = ranks_within(values, groups)
    m = groups.sums(flags)
    pairs = float((m * (groups.sizes - m)).sum())
    if pairs == 0:
        return None
    return float((groups.sums(ranks * flags) - m * (m + 1) / 2).sum()) / pairs


def auc_interval(values: FloatArray, positive: NDArray[np.bool_]) -> tuple[float, float] | None:
    """95 % interval of the ROC-AUC, taking rows as independent.

    DeLong's variance on the logit scale. Where the sides separate completely it is 0; the open end
    is then Wilson's bound for as many successes as the smaller side has rows, as in
    `stats.auroc_estimate`.

    Returns:
        None with fewer than two rows on a side.

    Source: DeLong et al. 1988, by ranks after Sun and Xu 2014; logit: Qin and Hotilovac 2008.
    """
    from scipy.stats import norm, rankdata

    a, b = values[positive], values[~positive]
    m, k = len(a), len(b)
    if min(m, k) < 2:
        return None
    ranks = rankdata(np.concatenate([a, b]))
    above = (ranks[:m] - rankdata(a)) / k  # share of the negative rows below each positive one
    below = 1 - (ranks[m:] - rankdata(b)) / m
    area = float(above.mean())
    if area in (0.0, 1.0):
        bound, _ = stats.wilson(min(m, k), min(m, k))
        return (bound, 1.0) if area else (0.0, 1 - bound)
    error = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / k))
    middle, half = np.log(area / (1 - area)), norm.ppf(0.975) * error / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half)))) for side in (-1, 1))
    return low, high
