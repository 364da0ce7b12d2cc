"""What paired deltas show and what they cannot: intervals, tests and detection limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.analysis import paired
from mechprobe.analysis.deltas import Deltas

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
EFFECTS = ("low", "high", "p", "p_holm", "tost_p", "margin", "mde")


def effects(deltas: Deltas) -> pd.DataFrame:
    """Intervals, tests and detection limits of every line.

    All take the score of what was lost and gained, by the design effect of their clusters and, of
    scores, of how far each prompt changed.

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
    p = np.where(binary & (n > 0), paired.mcnemar_p(lost, gained), np.nan)
    score = paired.change_p(lost, gained, effect)
    for i in np.flatnonzero(binary & ~alone):
        begin, end = np.searchsorted(deltas.line, [i, i + 1])
        flips = paired.sign_flip_p(np.rint(deltas.change[begin:end]))
        p[i] = max(p[i], flips, score[i])
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
    n, mean, fallen, risen, furthest, squares = (
        deltas.table[x].to_numpy(np.float64)
        for x in ("n", "mean", "fallen", "risen", "furthest", "squares")
    )
    residuals = deltas.change - mean[deltas.line] * deltas.size
    within = fallen + risen - n * mean**2
    return stats.design_effect(
        residuals, deltas.size, within, squares, furthest**2, deltas.line, by_size=True
    )
