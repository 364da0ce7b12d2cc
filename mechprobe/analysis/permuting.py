"""p-values by permutation within model.

Rows of one model resemble each other, and six models are too few clusters for a bootstrap. Moving
an outcome about among the rows of each model keeps whatever differs between models and breaks only
what ties a metric to an outcome inside them. All statistics here are sums Σ a_i b_i, of values
(Pearson) or of ranks (Spearman, Mann-Whitney), so that many metrics are tested by one product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechprobe.analysis.grouped import Groups

FloatArray = NDArray[np.float64]
EXACT_UP_TO = 20_000
"""Arrangements that are all counted; of more, a sample is drawn."""
_AT_ONCE = 4_000_000
"""Numbers of permuted outcomes that are in memory together."""
_ROUNDING = 1e-9
"""Relative difference below which two sums are one arrangement's, added up in another order."""


@dataclass(frozen=True)
class Permuted:
    """Tests of metrics (a) against outcomes (b)."""

    p: FloatArray
    """Two-sided, shape (a, b); NaN where within every model one of the two is constant."""
    low: FloatArray
    """2.5 % quantile of Σ a_i b_i over the arrangements, shape (a, b)."""
    high: FloatArray
    """97.5 % quantile."""
    arrangements: int
    exact: bool
    """Whether these are all there are."""


def permute_within(
    metrics: FloatArray, outcomes: FloatArray, groups: Groups, *, permutations: int, seed: int
) -> Permuted:
    """Test every metric against every outcome.

    Two-sided by distance from the mean over all arrangements. All arrangements are counted where
    there are at most `EXACT_UP_TO`; else p is (1 + as extreme) / (1 + drawn), after Phipson and
    Smyth 2010.

    Args:
        metrics: Shape (n, a).
        outcomes: Shape (n, b).
        groups: The model of each row.
        permutations: Drawn where they cannot all be counted.
        seed: Of the draws.
    """
    order = np.argsort(groups.codes, kind="stable")
    sizes = groups.sizes
    sorted_groups = Groups(groups.names, groups.codes[order])
    columns = range(metrics.shape[1])
    # centred within models, the mean over all arrangements is 0
    a = np.stack([sorted_groups.centred(metrics[order, k]) for k in columns], axis=1)
    b = outcomes[order]
    moved = np.stack([sorted_groups.centred(b[:, k]) for k in range(b.shape[1])], axis=1)
    scale = np.sqrt((a**2).sum(axis=0))[:, None] * np.sqrt((moved**2).sum(axis=0))
    observed = a.T @ b
    means = _between(metrics, outcomes, groups)
    every = _arrangements(b, sizes)
    exact = every <= EXACT_UP_TO
    blocks = _all(b, sizes, every) if exact else _drawn(b, sorted_groups.codes, permutations, seed)
    sums = np.concatenate([np.einsum("rnb,na->rab", block, a, optimize=True) for block in blocks])
    far = (np.abs(sums) >= np.abs(observed) - _ROUNDING * scale).sum(axis=0)
    total = len(sums)
    p = far / total if exact else (1 + far) / (1 + total)
    alive = (_alive(a, metrics)[:, None]) & _alive(moved, outcomes)
    low, high = np.quantile(sums, (0.025, 0.975), axis=0)
    return Permuted(np.where(alive, p, np.nan), low + means, high + means, total, exact)


def _alive(centred: FloatArray, values: FloatArray) -> NDArray[np.bool_]:
    """Columns that vary within some model."""
    size = np.abs(values).max(axis=0)
    return np.asarray(np.abs(centred).max(axis=0) > _ROUNDING * np.maximum(size, 1e-300))


def _between(metrics: FloatArray, outcomes: FloatArray, groups: Groups) -> FloatArray:
    """Mean of Σ a_i b_i over all arrangements: Σ over models of n · mean(a) · mean(b)."""
    a, b = (
        np.stack([groups.sums(values[:, k]) for k in range(values.shape[1])], axis=1)
        for values in (metrics, outcomes)
    )
    return np.asarray((a / groups.sizes[:, None]).T @ b, np.float64)


def _parts(b: FloatArray, sizes: NDArray[np.int64]) -> list[FloatArray]:
    return np.split(b, np.cumsum(sizes)[:-1])


def _is_label(b: FloatArray) -> bool:
    """One column of 0 and 1: rows with the same label are interchangeable."""
    return b.shape[1] == 1 and bool(np.isin(b, (0.0, 1.0)).all())


def _arrangements(b: FloatArray, sizes: NDArray[np.int64]) -> int:
    if _is_label(b):
        return math.prod(math.comb(len(part), int(part.sum())) for part in _parts(b, sizes))
    return math.prod(math.factorial(int(size)) for size in sizes)


def _all(b: FloatArray, sizes: NDArray[np.int64], count: int) -> Iterator[FloatArray]:
    """Every arrangement, shape (k, n, b) a block."""
    options = []
    for part in _parts(b, sizes):
        n = len(part)
        if _is_label(b):
            chosen = itertools.combinations(range(n), int(part.sum()))
            found = np.zeros((math.comb(n, int(part.sum())), n, 1))
            for row, places in zip(found, chosen, strict=True):
                row[list(places)] = 1.0
        else:
            found = part[np.array(list(itertools.permutations(range(n))))]
        options.append(found)
    step = max(1, _AT_ONCE // max(1, b.size))
    for start in range(0, count, step):
        left = np.arange(start, min(start + step, count))
        chosen_parts = []
        for found in options:
            chosen_parts.append(found[left % len(found)])
            left = left // len(found)
        yield np.concatenate(chosen_parts, axis=1)


def _drawn(
    b: FloatArray, codes: NDArray[np.int64], permutations: int, seed: int
) -> Iterator[FloatArray]:
    """Random arrangements, shape (k, n, b) a block; the draws do not depend on the block size."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(1, b.size))
    for start in range(0, permutations, step):
        keys = rng.random((min(step, permutations - start), len(b)))
        # rows are sorted by model: a key below 1 never leaves its model
        yield b[np.argsort(keys + codes, axis=1)]
