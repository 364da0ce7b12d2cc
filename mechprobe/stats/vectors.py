"""Directions and distributions: cosines, their noise floor, and divergences, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of the angle between two vectors in float64; NaN where one of them is zero."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms > 0 else float("nan")


def kl_divergence(reference: ArrayLike, other: ArrayLike) -> FloatArray:
    """KL(reference ‖ other) in nats, row by row, from log-probabilities or logits.

    Args:
        reference: Shape (n, vocabulary); normalised here, in float64.
        other: The same shape.

    Returns:
        Shape (n,), each ≥ 0 up to rounding.
    """
    from scipy.special import log_softmax

    p: FloatArray = log_softmax(np.asarray(reference, np.float64), axis=-1)
    q: FloatArray = log_softmax(np.asarray(other, np.float64), axis=-1)
    # a token that p excludes contributes nothing, even where q excludes it too: 0 * (-inf + inf)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    total: FloatArray = terms.sum(axis=-1)
    return total


def split_half_cosine(
    positive: NDArray[Any],
    negative: NDArray[Any],
    *,
    twins: Sequence[tuple[int, int]] = (),
    rounds: int = 20,
    seed: int = 0,
) -> float | None:
    """Noise floor of a difference-of-means direction: cosine between two disjoint halves.

    A cosine between two models that is no lower than this says nothing about the models.

    Twins must stay in one half. What both have in common cancels in the whole difference but not
    between halves that hold one of them each; the halves then err in opposite ways, and the
    cosine goes to -1 where the labels make little difference (an untrained model).

    Args:
        positive: Activations, shape (n, width).
        negative: Activations, shape (m, width).
        twins: Rows of `positive` and of `negative` that belong together.
        rounds: Random splits to average over.
        seed: Of the splits.

    Returns:
        The mean cosine, or None with fewer than four rows on a side, or where the halves of one
        side do not differ from the other's at all.
    """
    if min(len(positive), len(negative)) < 4:
        return None
    rng = np.random.default_rng(seed)
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    pairs = np.asarray(list(twins), np.int64).reshape(-1, 2)
    single = [np.setdiff1d(np.arange(len(side)), pairs[:, k]) for k, side in enumerate((a, b))]
    values = []
    for _ in range(rounds):
        both = pairs[rng.permutation(len(pairs))]
        i, j = (np.concatenate([both[:, k], rng.permutation(single[k])]) for k in (0, 1))
        halves = [a[i[k::2]].mean(axis=0) - b[j[k::2]].mean(axis=0) for k in (0, 1)]
        values.append(cosine(*halves))
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None
