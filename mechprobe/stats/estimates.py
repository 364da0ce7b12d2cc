"""Means and paired shifts with their 95 % intervals, over prompts and clusters of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.stats.clusters import Clusters, cluster_codes, linear_error, studentised
from mechprobe.stats.difference import change_interval
from mechprobe.stats.shares import share_interval

FloatArray = NDArray[np.float64]
_ROUNDING = 1e-12
"""Of the largest value: values that differ by no more are alike."""
_MOST = 1000
"""Clusters above which means are not resampled."""


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
    clusters: Clusters | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """A mean of numbers without bounds, with an interval over clusters.

    At each end the further of two intervals that share a cluster-robust error, never below that
    of single prompts: Student's, which is right for few clusters, and the bootstrap-t, which is
    right for skewed values (a KL).

    Args:
        values: One per prompt, shape (n,).
        clusters: To which cluster each prompt belongs; None makes each its own, as it does of
            a prompt that has none (None, NaN).
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        None with fewer than two clusters, a value that is not finite, or values that are all alike:
        no interval, no estimate. All of them 0 they are [0, 0]: nothing moved on these prompts.

    Source: error and degrees of freedom: Bell and McCaffrey 2002; bootstrap-t: Hall 1992.
    """
    from scipy.stats import t as student

    x = np.asarray(values, np.float64)
    codes = cluster_codes(clusters, len(x))
    if not len(x) or not np.isfinite(x).all() or codes.max() == 0:
        return None
    mean = float(x.mean())
    if np.ptp(x) <= _ROUNDING * np.abs(x).max():
        return Estimate(0.0, 0.0, 0.0, len(x)) if not x.any() else None
    sizes: FloatArray = np.bincount(codes).astype(np.float64)
    residuals = np.asarray(np.bincount(codes, weights=x - mean), np.float64)
    influence, ones = (x - mean) / len(x), np.ones_like(x)
    error, freedom = linear_error((influence, ones, codes))
    error = max(error, linear_error((influence, ones, np.arange(len(x))))[0])
    reach = float(student.ppf(0.975, freedom))
    below = above = 0.0
    if len(sizes) <= _MOST:  # skew vanishes with n
        drawn = _draws(len(sizes), resamples, seed)
        errors = studentised(drawn, residuals[:, None], sizes[:, None])
        below, above = np.quantile(errors, (0.025, 0.975)).tolist()
    low, high = mean - error * max(reach, above), mean + error * max(reach, -below)
    return Estimate(mean, low, high, len(x))


@lru_cache(maxsize=4)
def _draws(m: int, resamples: int, seed: int) -> FloatArray:
    """How often each of m clusters is drawn, shape (resamples, m)."""
    drawn = np.random.default_rng(seed).multinomial(m, np.full(m, 1 / m), size=resamples)
    return drawn.astype(np.float64)


def share_estimate(
    values: ArrayLike,
    *,
    clusters: Clusters | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate | None:
    """A mean of numbers within bounds, with an interval that no lack of variation closes.

    Between 0 and another number Wilson's for the effective number of prompts; around 0, as of
    differences, Tango's.

    Args:
        values: One per prompt, shape (n,).
        clusters: As in `mean_estimate`.
        bounds: (0, b) or (-b, b).

    Returns:
        None without values, and where one is not finite.
    """
    low, high = bounds
    x = np.asarray(values, np.float64) / high
    codes = cluster_codes(clusters, len(x))
    if not len(x) or not np.isfinite(x).all():
        return None
    if low:
        ends = change_interval(np.clip(x, -1.0, 1.0), codes)
    else:
        ends = share_interval(np.clip(x, 0.0, 1.0), codes)
    return Estimate(high * float(x.mean()), high * ends[0], high * ends[1], len(x))


def paired_shift(
    cell: ArrayLike,
    baseline: ArrayLike,
    *,
    clusters: Clusters | None = None,
    most: float | None = None,
    seed: int = 0,
) -> PairedShift | None:
    """Mean of cell minus baseline over prompts that both saw, shape (n,) each.

    Args:
        cell: Values of the cell.
        baseline: Values of the baseline.
        clusters: As in `mean_estimate`.
        most: The largest difference that there can be: 1 for outcomes and probabilities. The
            interval is then that of `share_estimate`, else that of `mean_estimate`.
        seed: Of the bootstrap.

    Returns:
        None with fewer than two clusters, and where a value is not finite.
    """
    a, b = np.asarray(cell, np.float64), np.asarray(baseline, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}: prompts are not paired")
    change = a - b
    if len(set(cluster_codes(clusters, len(change)).tolist())) < 2:
        return None
    found = (
        mean_estimate(change, clusters=clusters, seed=seed)
        if most is None
        else share_estimate(change, clusters=clusters, bounds=(-most, most))
    )
    if found is None:
        return None
    spread = float(change.std(ddof=1))
    effect = found.value / spread if spread > 0 else None
    return PairedShift(found.value, found.low, found.high, len(a), float(b.mean()), effect)


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
