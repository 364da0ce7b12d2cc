"""Prompts that belong together: which they are, and how much less they say than single ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Clusters = Sequence[Any] | NDArray[Any]
"""To which cluster each row belongs, by any names."""
FEWEST = 8
"""Clusters below which means are not resampled."""
PSEUDO_CLUSTERS = 4
"""Clusters of average size, each changed as a whole, that a design effect is shrunk towards: the
fewest with which the equivalence test keeps 5 % at every correlation within clusters (simulated in
tests/analysis/test_clustered.py): the claims that err are those where few prompts changed, and few
say little about whether clusters change as a whole."""


def cluster_codes(clusters: Clusters | None, n: int) -> IntArray:
    """Number the clusters of n rows, shape (n,); a row without one (None, NaN) is its own.

    Raises:
        ValueError: There are not n of them.
    """
    if clusters is None:
        return np.arange(n)
    import pandas as pd

    given = pd.Series(list(clusters), dtype=object)  # type: ignore[arg-type, unused-ignore]
    if len(given) != n:
        raise ValueError(f"{n} values and {len(given)} clusters")
    codes, names = pd.factorize(given)
    alone = codes < 0
    found: IntArray = codes.astype(np.int64)
    found[alone] = len(names) + np.arange(int(alone.sum()))
    return found


def design_effect(
    between: ArrayLike, within: ArrayLike, size: ArrayLike, largest: ArrayLike
) -> FloatArray:
    """Variance of a mean over clusters, as a multiple of what `within` gives single prompts.

    The estimate is shrunk towards clusters that change as a whole, by `PSEUDO_CLUSTERS` of them;
    where nothing varies it is that of whole clusters.

    Args:
        between: Sum over clusters of (sum of their residuals)².
        within: Sum over prompts of the variance of single prompts.
        size: Mean cluster size that a prompt sees, Σ size² / n.
        largest: Largest squared residual of a prompt.

    Source: Rao and Scott 1992; size: Kish 1965.
    """
    s, v, d, r = (np.asarray(x, np.float64) for x in (between, within, size, largest))
    extra = PSEUDO_CLUSTERS * d * r
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = np.where(r > 0, (s + extra * d) / (v + extra), d)
    return found


def effective(values: FloatArray, codes: IntArray, within: float, *, floor: float) -> float:
    """`design_effect` of the mean of some values, shape (n,), at least `floor`."""
    size: FloatArray = np.bincount(codes).astype(np.float64)
    residual = values - values.mean()
    between = float((np.bincount(codes, weights=residual) ** 2).sum())
    kish, largest = float((size**2).sum()) / len(values), float((residual**2).max())
    if len(size) == 1:
        return max(kish, floor)
    return max(float(design_effect(between, within, kish, largest)), floor)


def shared_variation(values: FloatArray, codes: IntArray) -> float:
    """Correlation of the values of one cluster, in [0, 1], by their design effect; 0 if alone."""
    size: FloatArray = np.bincount(codes).astype(np.float64)
    kish = float((size**2).sum()) / len(values)
    if kish <= 1:
        return 0.0
    residual = values - values.mean()
    effect = effective(values, codes, float((residual**2).sum()), floor=1.0)
    return min((effect - 1) / (kish - 1), 1.0)


def robust_error(
    residuals: FloatArray, sizes: ArrayLike, line: IntArray | None = None, lines: int = 1
) -> tuple[FloatArray, FloatArray]:
    """Standard errors of means over clusters, and their degrees of freedom, shape (lines,) each.

    CR2: the residuals of a cluster that is the share p of all prompts count 1 / (1 - p) times, so
    that the variance of independent values is unbiased.

    Args:
        residuals: Of each cluster the sum of its values less their mean, shape (clusters,).
        sizes: Prompts of each cluster.
        line: To which of several means each cluster belongs, ascending.
        lines: How many means.

    Source: Bell and McCaffrey 2002.
    """
    size = np.asarray(sizes, np.float64)
    of = np.zeros(len(size), np.int64) if line is None else line

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(of, weights=values, minlength=lines).astype(np.float64)

    n = total(size)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = size / n[of]
        error: FloatArray = np.sqrt(total(residuals**2 / (1 - share))) / n
        owed = share**2 / (1 - share)
        freedom: FloatArray = 1 / (total(share**2) + total(owed) ** 2 - total(owed**2))
    return error, freedom


def studentised(weights: FloatArray, residuals: FloatArray, sizes: FloatArray) -> FloatArray:
    """Errors of means over their standard errors, by drawing clusters again (the bootstrap-t).

    Args:
        weights: How often each cluster is drawn, shape (resamples, clusters).
        residuals: As in `robust_error`, shape (clusters, means).
        sizes: The same shape.

    Returns:
        Shape (resamples, means); 0, which widens nothing, with fewer than `FEWEST` clusters, which
        make few different draws, and where those drawn do not differ.

    Source: Hall 1992.
    """
    if len(residuals) < FEWEST:
        return np.zeros((len(weights), residuals.shape[1]))
    total = weights @ sizes
    mean = weights @ residuals / total
    squares = weights @ residuals**2
    squares += mean * (mean * (weights @ sizes**2) - 2 * (weights @ (residuals * sizes)))
    varied = squares > 1e-12 * (residuals**2).sum(axis=0)
    m = len(residuals)
    scale = np.sqrt(m / (m - 1) * np.where(varied, squares, 1.0))
    found: FloatArray = np.where(varied, mean * total / scale, 0.0)
    return found
