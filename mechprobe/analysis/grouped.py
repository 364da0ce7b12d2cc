"""Correlations within each group and without each group, for all groups at once.

A matrix has models, and families of models; every claim about it is asked again inside each of
them and without each of them. Sums by group answer that in time linear in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
LEAST = 3
"""Values that a correlation needs: through two points there is always a line."""
_SAME = 1e-12
"""Relative spread below which values differ by rounding alone."""
_CANCELS = 1e-6
"""Share of a sum of squares below which a difference of sums has lost its digits."""


@dataclass(frozen=True, slots=True)
class Groups:
    """To which group each row belongs."""

    names: tuple[Any, ...]
    """In the order in which they first appear."""
    codes: IntArray
    """Index into `names` for each row, shape (n,)."""

    @classmethod
    def of(cls, values: Sequence[Any] | ArrayLike) -> Groups:
        """Groups of rows that carry equal values."""
        import pandas as pd

        codes, names = pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=False)
        return cls(tuple(names.tolist()), np.asarray(codes, np.int64))

    @property
    def sizes(self) -> IntArray:
        """Rows of each group."""
        return np.bincount(self.codes, minlength=len(self.names))

    def sums(self, values: FloatArray) -> FloatArray:
        """Sum of the values of each group."""
        return np.bincount(self.codes, weights=values, minlength=len(self.names)).astype(np.float64)

    def centred(self, values: FloatArray) -> FloatArray:
        """Each value minus the mean of its group."""
        means = self.sums(values) / np.maximum(self.sizes, 1)
        left: FloatArray = values - means[self.codes]
        # a second pass takes away what the mean of large values was rounded by
        rest: FloatArray = (self.sums(left) / np.maximum(self.sizes, 1))[self.codes]
        return np.asarray(left - rest, np.float64)

    def extremes(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value of each group."""
        least, most = np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)
        np.minimum.at(least, self.codes, values)
        np.maximum.at(most, self.codes, values)
        return least, most

    def extremes_without(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Least and greatest value of all rows outside each group."""
        least, most = self.extremes(values)
        return _least_of_others(least), -_least_of_others(-most)


def _least_of_others(values: FloatArray) -> FloatArray:
    if len(values) < 2:
        return np.full(len(values), np.inf)
    order = np.argsort(values)
    found = np.full(len(values), values[order[0]])
    found[order[0]] = values[order[1]]
    return found


def varies(least: ArrayLike, most: ArrayLike) -> NDArray[np.bool_]:
    """Whether values between these two differ by more than rounding."""
    a, b = np.asarray(least, np.float64), np.asarray(most, np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(b - a > _SAME * np.maximum(np.abs(a), np.abs(b)))


def correlation(x: FloatArray, y: FloatArray) -> float:
    """Pearson's r; NaN with fewer than three rows, and where one side does not vary."""
    if len(x) < LEAST or not (varies(x.min(), x.max()) and varies(y.min(), y.max())):
        return float("nan")
    from scipy.stats import pearsonr

    return float(pearsonr(x, y).statistic)


def correlations_within(x: FloatArray, y: FloatArray, groups: Groups) -> FloatArray:
    """`correlation` of the rows of each group."""
    a, b = groups.centred(x), groups.centred(y)
    known = (groups.sizes >= LEAST) & varies(*groups.extremes(x)) & varies(*groups.extremes(y))
    xx, yy, xy = (groups.sums(part) for part in (a * a, b * b, a * b))
    return _ratio(xx, yy, xy, known)


def correlations_without(x: FloatArray, y: FloatArray, groups: Groups) -> FloatArray:
    """`correlation` of all rows outside each group."""
    a, b = x - x.mean(), y - y.mean()
    a, b = a - a.mean(), b - b.mean()
    left = len(x) - groups.sizes
    known = (
        (left >= LEAST) & varies(*groups.extremes_without(x)) & varies(*groups.extremes_without(y))
    )
    sums = [groups.sums(part) for part in (a, b)]
    xx, yy, xy = (
        float(p @ q) - groups.sums(p * q) - s * t / np.maximum(left, 1)
        for p, q, s, t in (
            (a, a, sums[0], sums[0]),
            (b, b, sums[1], sums[1]),
            (a, b, sums[0], sums[1]),
        )
    )
    found = _ratio(xx, yy, xy, known)
    # where one group held nearly all of the spread, the difference of sums is rounding
    for code in np.flatnonzero(known & ((xx < _CANCELS * (a @ a)) | (yy < _CANCELS * (b @ b)))):
        others = groups.codes != code
        found[code] = correlation(x[others], y[others])
    return found


def _ratio(xx: FloatArray, yy: FloatArray, xy: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.clip(xy / np.sqrt(xx * yy), -1.0, 1.0)
    return np.where(known, found, np.nan)


def ranks_within(values: FloatArray, groups: Groups) -> FloatArray:
    """Average rank of each value among those of its group."""
    import pandas as pd

    found = pd.Series(values).groupby(groups.codes).rank(method="average")
    return np.asarray(found, np.float64)
