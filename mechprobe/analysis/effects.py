"""What paired deltas show and what they cannot: intervals, tests and detection limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.analysis import paired
from mechprobe.analysis.deltas import Deltas
from mechprobe.analysis.paired import EQUIVALENCE_POINTS

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
EFFECTS = ("low", "high", "p", "p_holm", "tost_p", "margin", "mde")


def effects(deltas: Deltas) -> pd.DataFrame:
    """Intervals, tests and detection limits of every line.

    Yes-or-no outcomes, and scores that few prompts changed, take the score of their counts, by the
    design effect of their clusters. Scores of which more than half of the prompts changed take the
    cluster-robust error of a mean: see `stats.mean_estimate`.

    Returns:
        The lines of `deltas.table` with the columns `EFFECTS`, NaN where the data cannot say: all
        on the scale of the outcomes. `p` is McNemar's, adjusted within measure and instrument.
    """
    table = deltas.table
    n, m, lost, gained = (table[x].to_numpy() for x in ("n", "clusters", "lost", "gained"))
    binary = (table["kind"] == "binary").to_numpy()
    alone = binary & (m == n)
    known = (n > 0) & (alone | (m > 1))
    fallen, risen = (table[x].to_numpy(np.float64) for x in ("fallen", "risen"))
    effect = np.where(alone, 1.0, _design_effect(deltas))
    effect = np.where(binary, np.maximum(effect, 1.0), effect)
    with np.errstate(invalid="ignore", divide="ignore"):
        tost = paired.equivalence_p(fallen, risen, n, effect=effect)
        low, high = stats.difference_interval(fallen, risen, n, effect)
        changed, whole = np.maximum((fallen + risen) / effect, 1.0), n / effect
        margin = paired.smallest_margin(changed / whole, whole)
        mde = paired.detectable_shift(np.sqrt(changed) / whole)
    yes_or_no = known & binary
    single, churn = (
        np.rint(x[yes_or_no] / effect[yes_or_no]).astype(np.int64)
        for x in (n, 2 * np.minimum(lost, gained))
    )
    mde[yes_or_no] = paired.detectable_fall(single, churn)
    # few changed clusters make a small effect, but the exact test needs some that change
    grouped = yes_or_no & ~alone
    none = np.zeros(len(n), np.int64)
    mde[grouped] = np.maximum(mde[grouped], paired.detectable_fall(m[grouped], none[grouped]))
    smooth = np.flatnonzero(known & ~binary & (2 * (lost + gained) > n))
    if len(smooth):
        error, low[smooth], high[smooth], tost[smooth] = _of_means(deltas, smooth)
        margin[smooth] = paired.smallest_margin(error**2 * n[smooth], n[smooth])
        mde[smooth] = paired.detectable_shift(error)
    p = np.where(binary & (n > 0), paired.mcnemar_p(lost, gained), np.nan)
    for i in np.flatnonzero(binary & ~alone):
        begin, end = np.searchsorted(deltas.line, [i, i + 1])
        p[i] = paired.sign_flip_p(np.rint(deltas.change[begin:end]))
    found = table.assign(
        low=np.where(known, low, np.nan),
        high=np.where(known, high, np.nan),
        p=p,
        p_holm=np.nan,
        tost_p=np.where(known, tost, np.nan),
        margin=np.where(known, margin, np.nan),
        mde=np.where(known, mde, np.nan),
    )
    for _, part_of in found.groupby(["measure", "instrument"], sort=False):
        found.loc[part_of.index, "p_holm"] = paired.holm(part_of["p"].to_numpy())
    return found


def _design_effect(deltas: Deltas) -> FloatArray:
    """Of each mean change over its clusters, shape (lines,)."""
    table = deltas.table
    n, mean, fallen, risen, furthest = (
        table[x].to_numpy(np.float64) for x in ("n", "mean", "fallen", "risen", "furthest")
    )

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(deltas.line, weights=values, minlength=len(n)).astype(np.float64)

    between = total((deltas.change - mean[deltas.line] * deltas.size) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = total(deltas.size.astype(np.float64) ** 2) / n
        return stats.design_effect(between, fallen + risen - n * mean**2, size, furthest**2)


def _of_means(
    deltas: Deltas, lines: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Error, 95 % interval and equivalence p of mean changes, shape (len(lines),) each.

    Student's by the cluster-robust error, and the bootstrap-t where that claims less.
    """
    from scipy.stats import t as student

    mean = deltas.table["mean"].to_numpy(np.float64)
    residual = deltas.change - mean[deltas.line] * deltas.size
    errors, freedom = stats.robust_error(residual, deltas.size, deltas.line, len(deltas.table))
    error, middle = errors[lines], mean[lines]
    margin = EQUIVALENCE_POINTS / 100
    reach: FloatArray = np.asarray(student.ppf(0.975, freedom[lines]), np.float64)
    low: FloatArray = middle - reach * error
    high: FloatArray = middle + reach * error
    p = paired.tost_p(middle, error, df=freedom[lines])
    for part, weights, change, size in deltas.draws(lines):
        drawn = stats.studentised(weights, change - middle[part] * size, size)
        below, above = np.quantile(drawn, (0.025, 0.975), axis=0)
        low[part] = np.minimum(low[part], middle[part] - above * error[part])
        high[part] = np.maximum(high[part], middle[part] - below * error[part])
        for beyond in (
            drawn >= (middle[part] + margin) / error[part],
            drawn <= (middle[part] - margin) / error[part],
        ):
            p[part] = np.maximum(p[part], beyond.mean(axis=0))
    return error, low, high, p
