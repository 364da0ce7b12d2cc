"""Statistics as thin pure functions over scipy, statsmodels and scikit-learn.

Everything that compares a cell with its baseline is paired by prompt. A statistic that the data
cannot support is None, which every table shows as `not measured`; it is never 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def wilson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as shares in [0, 1]; (0, 1) at n = 0.

    Source: Wilson 1927, through `statsmodels.stats.proportion.proportion_confint`.
    """
    if n == 0:
        return 0.0, 1.0
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Area under the ROC curve of scores: P(positive > negative), ties counted half.

    Computed from the Mann-Whitney U statistic; None where either side is empty.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if not len(a) or not len(b):
        return None
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a, b).statistic / (len(a) * len(b)))


def dprime(positive: ArrayLike, negative: ArrayLike) -> float | None:
    """Sensitivity index: difference of means over the root mean of the two sample variances.

    None where a side has fewer than two values or neither side varies.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if len(a) < 2 or len(b) < 2:
        return None
    spread = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    return float(a.mean() - b.mean()) / spread if spread > 0 else None


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
    positive: NDArray[Any], negative: NDArray[Any], *, rounds: int = 20, seed: int = 0
) -> float | None:
    """Noise floor of a difference-of-means direction: cosine between two disjoint halves.

    A cosine between two models that is no lower than this says nothing about the models.

    Args:
        positive: Activations, shape (n, width).
        negative: Activations, shape (m, width).
        rounds: Random splits to average over.
        seed: Of the splits.

    Returns:
        The mean cosine, or None with fewer than four rows on a side.
    """
    if min(len(positive), len(negative)) < 4:
        return None
    rng = np.random.default_rng(seed)
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    values = []
    for _ in range(rounds):
        i, j = rng.permutation(len(a)), rng.permutation(len(b))
        halves = [a[i[k::2]].mean(axis=0) - b[j[k::2]].mean(axis=0) for k in (0, 1)]
        values.append(cosine(*halves))
    return float(np.mean(values))
