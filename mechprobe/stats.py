"""Statistics as thin pure functions over scipy, statsmodels and scikit-learn.

Everything that compares a cell with its baseline is paired by prompt. A statistic that the data
cannot support is None, which every table shows as `not measured`; it is never 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    return min(float(low), count / n), max(float(high), count / n)  # at 0 and n rounding errs


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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval and the number of prompts behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """For a table: `0.412 [0.330, 0.498]`."""
        return f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


@dataclass(frozen=True, slots=True)
class PairedShift:
    """A cell's mean minus its baseline's over the same prompts, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    baseline: float
    """Mean of the baseline."""
    effect: float | None
    """Cohen's d_z: the mean difference over the differences' sample standard deviation."""

    def opposite(self) -> PairedShift:
        """Baseline minus cell: what was lost. `baseline` stays the mean of the baseline."""
        effect = None if self.effect is None else -self.effect
        # 0 - x, because -x of no shift at all would be written -0
        return PairedShift(
            0.0 - self.value, 0.0 - self.high, 0.0 - self.low, self.n, self.baseline, effect
        )

    def __str__(self) -> str:
        """For a table: `+0.412 [+0.330, +0.498]`."""
        return f"{self.value:+z.3f} [{self.low:+z.3f}, {self.high:+z.3f}]"


def mean_estimate(
    values: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """A mean with its bootstrap interval (BCa), clusters of values resampled together.

    Args:
        values: One per prompt, shape (n,).
        clusters: To which cluster each prompt belongs; None makes each its own.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        None with fewer than two clusters or a value that is not finite: no interval, no estimate.

    Source: Efron 1987, through `scipy.stats.bootstrap`.
    """
    x = np.asarray(values, np.float64)
    own: Any = np.arange(len(x)) if clusters is None else list(clusters)
    if len(own) != len(x):
        raise ValueError(f"{len(x)} values and {len(own)} clusters")
    if not len(x) or not np.isfinite(x).all():
        return None
    _, which = np.unique(own, return_inverse=True)
    counts: FloatArray = np.bincount(which).astype(np.float64)
    sums: FloatArray = np.asarray(np.bincount(which, weights=x), np.float64)
    if len(counts) < 2:
        return None

    def ratio(total: FloatArray, count: FloatArray, axis: int = -1) -> FloatArray:
        found: FloatArray = total.sum(axis=axis) / count.sum(axis=axis)
        return found

    mean = float(x.mean())
    if np.ptp(sums / counts) == 0:
        return Estimate(mean, mean, mean, len(x))
    # BCa's corrections vanish with n, and its jackknife costs n²
    method = "BCa" if len(counts) <= 1000 else "percentile"
    low, high = bootstrap_interval(
        (sums, counts), ratio, resamples, seed, paired=True, method=method
    )
    return Estimate(mean, low, high, len(x))


def paired_shift(
    cell: ArrayLike,
    baseline: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    seed: int = 0,
) -> PairedShift | None:
    """Mean of cell minus baseline over prompts that both saw, shape (n,) each.

    Returns:
        None where `mean_estimate` of the differences is; the interval is that one's.
    """
    a, b = np.asarray(cell, np.float64), np.asarray(baseline, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}: prompts are not paired")
    found = mean_estimate(a - b, clusters=clusters, seed=seed)
    if found is None:
        return None
    spread = float((a - b).std(ddof=1))
    effect = found.value / spread if spread > 0 else None
    return PairedShift(found.value, found.low, found.high, len(a), float(b.mean()), effect)


def auroc_estimate(
    positive: ArrayLike, negative: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """`auroc` with a percentile bootstrap interval, each side resampled on its own.

    Where the sides separate completely a bootstrap knows no error; the open end is then Wilson's
    bound for as many successes as the smaller side has values.

    Returns:
        None with fewer than two values on a side.
    """
    from scipy.stats import rankdata

    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    value = auroc(a, b)
    if value is None or min(len(a), len(b)) < 2:
        return None
    n = len(a) + len(b)
    if value in (0.0, 1.0):
        bound, _ = wilson(min(len(a), len(b)), min(len(a), len(b)))
        return Estimate(value, *((bound, 1.0) if value else (0.0, 1 - bound)), n)

    def area(x: FloatArray, y: FloatArray, axis: int = -1) -> FloatArray:
        ranks = rankdata(np.concatenate([x, y], axis=axis), axis=axis)
        m, k = x.shape[axis], y.shape[axis]
        total = np.take(ranks, np.arange(m), axis=axis).sum(axis=axis)
        found: FloatArray = (total - m * (m + 1) / 2) / (m * k)
        return found

    low, high = bootstrap_interval((a, b), area, resamples, seed, method="percentile")
    return Estimate(value, low, high, n)


def dprime_estimate(
    positive: ArrayLike, negative: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """`dprime` with a percentile bootstrap interval, each side resampled on its own.

    Returns:
        None where `dprime` is.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    value = dprime(a, b)
    if value is None:
        return None

    def index(x: FloatArray, y: FloatArray, axis: int = -1) -> FloatArray:
        spread = np.sqrt((x.var(axis=axis, ddof=1) + y.var(axis=axis, ddof=1)) / 2)
        found: FloatArray = (x.mean(axis=axis) - y.mean(axis=axis)) / spread
        return found

    low, high = bootstrap_interval((a, b), index, resamples, seed, method="percentile")
    return Estimate(value, low, high, len(a) + len(b))


def bootstrap_interval(
    data: tuple[FloatArray, ...],
    statistic: Callable[..., FloatArray],
    resamples: int,
    seed: int,
    *,
    paired: bool = False,
    method: str = "BCa",
) -> tuple[float, float]:
    """A 95 % bootstrap interval of a statistic; percentile where BCa has no value.

    Args:
        data: Samples, one array each.
        statistic: Of the samples along `axis`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        paired: Whether the samples are resampled together.
        method: `BCa` or `percentile`.
    """
    from scipy.stats import bootstrap

    def interval(how: str) -> tuple[float, float]:
        found = bootstrap(
            data,
            statistic,
            n_resamples=resamples,
            paired=paired,
            vectorized=True,
            method=how,
            rng=np.random.default_rng(seed),
            batch=max(1, min(256, 2_000_000 // len(data[0]))),  # bounds memory
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa warns where it is undefined, which is handled here
        low, high = interval(method)
        # BCa has no value where no resample falls below the estimate
        return (low, high) if np.isfinite([low, high]).all() else interval("percentile")
