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
        ValueError: There are not n of them, or one is no name (a list).
    """
    if clusters is None:
        return np.arange(n)
    import pandas as pd

    given = pd.Series(list(clusters), dtype=object)  # type: ignore[arg-type, unused-ignore]
    if len(given) != n:
        raise ValueError(f"{n} values and {len(given)} clusters")
    try:
        codes, names = pd.factorize(given)
    except TypeError as error:
        raise ValueError(f"clusters: {error}; name each by a text or a number") from error
    alone = codes < 0
    found: IntArray = codes.astype(np.int64)
    found[alone] = len(names) + np.arange(int(alone.sum()))
    return found


def design_effect(
    residuals: FloatArray,
    sizes: ArrayLike,
    within: ArrayLike,
    squares: ArrayLike,
    largest: ArrayLike,
    line: IntArray | None = None,
    *,
    by_size: bool = False,
) -> FloatArray:
    """Variance of means over clusters, as a multiple of what `within` gives single prompts.

    It is shrunk towards clusters that change as a whole: by `PSEUDO_CLUSTERS` of them that change
    as far as the prompt that changed most, or by one that changes as far as can be, whichever is
    more.
    Clusters of different sizes show less of it than as many equal ones: each is left out once
    (CR3), and the effect grows by the squared ratio of Student's quantiles at their effective and
    at their own number. It is never below that of single prompts, so that declaring clusters makes
    nothing surer.

    Args:
        residuals: Of each cluster the sum of its values less their mean, shape (clusters,).
        sizes: Prompts of each cluster.
        within: Sum over prompts of the variance of single yes-or-no prompts, shape (lines,).
        squares: Sum over prompts of their squared residuals.
        largest: Largest squared residual of a prompt, where the furthest that can be is 1.
        line: To which of several means each cluster belongs, ascending.
        by_size: Whether large clusters may change otherwise than small ones, as wrapped requests
            and direct ones do: those that it is shrunk towards are then larger, and the one that
            changes as far as can be has the size of the cluster where the variance lies on average.

    Returns:
        Shape (lines,); of a single cluster its size, NaN without one.

    Source: Rao and Scott 1992; size: Kish 1965; CR3: Bell and McCaffrey 2002.
    """
    from scipy.stats import t as student

    size, v, w, r = (np.asarray(x, np.float64) for x in (sizes, within, squares, largest))
    of = np.zeros(len(size), np.int64) if line is None else line

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(of, weights=values, minlength=v.size).astype(np.float64)

    number, n = total(np.ones_like(size)), total(size)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = size / n[of]
        kish = total(share * size)
        between = (1 - kish / n) ** 2 * total((residuals / (1 - share)) ** 2)
        far = np.maximum(PSEUDO_CLUSTERS * r, 1.0)
        heavy = total(share**2 * size) / total(share**2) if by_size else kish
        pseudo = np.sqrt(kish * heavy)
        effect = (between + far * pseudo**2) / (v + far * pseudo)
        if by_size:
            effect = np.maximum(effect, (between + heavy**2) / (v + heavy))
        few, equal = (student.ppf(0.975, np.maximum(m - 1, 1)) for m in (n / kish, number))
        effect = np.maximum(effect * (few / equal) ** 2, (w + far) / (v + far))
        found: FloatArray = np.where(number > 1, effect, kish)
    return found


def effective(
    values: FloatArray, codes: IntArray, within: float, *, by_size: bool = False
) -> float:
    """`design_effect` of the mean of some values, shape (n,)."""
    residual = values - values.mean()
    found = design_effect(
        np.bincount(codes, weights=residual).astype(np.float64),
        np.bincount(codes),
        [within],
        [float(residual @ residual)],
        [float((residual**2).max())],
        by_size=by_size,
    )
    return float(found[0])


def shared_variation(values: FloatArray, codes: IntArray) -> float:
    """Correlation of the values of one cluster, in [0, 1], by their design effect; 0 if alone."""
    size: FloatArray = np.bincount(codes).astype(np.float64)
    kish = float((size**2).sum()) / len(values)
    if kish <= 1:
        return 0.0
    residual = values - values.mean()
    effect = effective(values, codes, float((residual**2).sum()))
    return min((effect - 1) / (kish - 1), 1.0)


def linear_error(*means: tuple[FloatArray, FloatArray, IntArray]) -> tuple[float, float]:
    """Standard error of a sum of means over clusters, and degrees of freedom for Student's t.

    CR3: each cluster is left out once of each mean. Of equal clusters the degrees are their number
    less 1; a large one beside small ones may carry most of the variance and is one observation, so
    that the number is then the inverse share of the cluster where the variance lies on average,
    were all clusters to vary as a whole. (Simulated in tests/analysis/test_clustered.py: without
    it intervals cover 84 to 93 %; Satterthwaite's degrees for such clusters need twice the width.)

    Args:
        means: Of each the influence of its rows, which sum to 0, their weights and their clusters,
            shape (rows,) each. A cluster may have rows of several, and no mean all its rows in one.

    Source: Bell and McCaffrey 2002.
    """
    groups = max(int(codes.max()) for _, _, codes in means) + 1
    total: FloatArray = np.zeros(groups)
    variance = carried = 0.0
    for influence, weight, codes in means:
        sums, sizes = (np.bincount(codes, part, groups) for part in (influence, weight))
        share = sizes / sizes.sum()
        total += sums / (1 - share)
        variance += float(sums @ sums)
        carried += float(sums @ sums) * float((share**3).sum() / (share**2).sum())
    freedom = variance / carried - 1 if carried else 1.0
    return float(np.sqrt(total @ total)), max(freedom, 1.0)


def studentised(weights: FloatArray, residuals: FloatArray, sizes: FloatArray) -> FloatArray:
    """Errors of means over their standard errors, by drawing clusters again (the bootstrap-t).

    Args:
        weights: How often each cluster is drawn, shape (resamples, clusters).
        residuals: Of each cluster the sum of its values less their mean, shape (clusters, means).
        sizes: Rows of each cluster, the same shape.

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
