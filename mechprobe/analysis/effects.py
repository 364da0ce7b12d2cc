"""What paired deltas show and what they cannot: intervals, tests and detection limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe.analysis import paired
from mechprobe.analysis.deltas import Deltas

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
EFFECTS = ("low", "high", "p", "p_holm", "tost_p", "margin", "mde")
_FLAT = 1e-9
"""A standard error below this is rounding: no cluster differs from another."""


def effects(deltas: Deltas) -> pd.DataFrame:
    """Intervals, tests and detection limits of every line.

    Independent yes-or-no outcomes take closed forms of their counts. Scores, and prompts that form
    clusters, take the cluster-robust error and a bootstrap of whole clusters; where no cluster
    differs from another that error would be 0, and theirs is that of as many unchanged yes-or-no
    answers.

    Returns:
        The lines of `deltas.table` with the columns `EFFECTS`, NaN where the data cannot say: all
        on the scale of the outcomes. `p` is McNemar's, adjusted within measure and instrument.
    """
    table = deltas.table
    n, m, lost, gained = (table[x].to_numpy() for x in ("n", "clusters", "lost", "gained"))
    binary = (table["kind"] == "binary").to_numpy()
    alone = binary & (m == n)
    known = (n > 0) & (alone | (m > 1))
    none = np.zeros(len(n))
    with np.errstate(invalid="ignore", divide="ignore"):
        robust = _cluster_error(deltas)
        flat = ~(robust > _FLAT)
        shift, error = paired.difference(lost, gained, n)
        shift = np.where(alone, shift, table["mean"].to_numpy())
        error = np.where(alone, error, np.where(flat, paired.difference(none, none, m)[1], robust))
        tost = np.where(
            alone,
            paired.equivalence_p(lost, gained, n),
            paired.tost_p(shift, error, df=np.maximum(m - 1, 1)),
        )
        low, high = paired.normal_interval(shift, error)
        discordant = np.maximum(table["squares"].to_numpy(), 1.0) / n
        margin = paired.smallest_margin(np.where(alone, discordant, error**2 * n), n)
        mde = paired.detectable_shift(error)
    again = np.flatnonzero(known & ~alone & ~flat)
    for part, change, size in deltas.resampled(again):
        low[again[part]], high[again[part]] = np.percentile(change / size, [2.5, 97.5], axis=0)
    mde[alone] = paired.detectable_fall(n[alone], 2 * np.minimum(lost[alone], gained[alone]))
    # few changed clusters make a small error, but the exact test needs some that change
    grouped = binary & ~alone
    mde[grouped] = np.maximum(mde[grouped], paired.detectable_fall(m[grouped], none[grouped]))
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


def _cluster_error(deltas: Deltas) -> FloatArray:
    """Standard error of each mean change over independent clusters, shape (lines,).

    Source: the sandwich estimator of a ratio of cluster totals, with m / (m - 1).
    """
    n, m, mean = (deltas.table[x].to_numpy(np.float64) for x in ("n", "clusters", "mean"))
    residual = deltas.change - mean[deltas.line] * deltas.size
    total = np.bincount(deltas.line, weights=residual**2, minlength=len(n))
    found: FloatArray = np.sqrt(total * m / (m - 1)) / n
    return found
