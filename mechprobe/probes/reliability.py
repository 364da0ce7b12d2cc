"""Does a stated probability come true as often as it says? One probability, one yes-or-no outcome.

The expected calibration error of a finite sample is above 0 even for a perfectly calibrated model,
so it never stands alone: beside it is what perfect calibration would give at the same
probabilities and n, and how often it would give as much (consistency resampling, Bröcker & Smith
2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe import stats
from mechprobe.behavior.rate import Rate
from mechprobe.stats import Estimate, PairedShift

FloatArray = NDArray[np.float64]
Binning = Literal["width", "mass"]
Verdict = Literal["no miscalibration shown", "overconfident", "underconfident", "miscalibrated"]
BINS = 15
MIN_OUTCOMES = 8
"""Outcomes of each kind that an AUROC needs, as many as refusal tokens ask for on a side."""
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One point of a reliability diagram."""

    probability: float
    """Mean stated probability of the bin."""
    outcome: Rate
    """How often it came true."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Stated probabilities held against outcomes."""

    outcome: Rate
    probability: Estimate
    """Mean stated probability."""
    gap: PairedShift
    """Stated minus observed: above 0 is overconfident."""
    ece: float
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017)."""
    ece_mass: float
    """The same over 15 bins of equal count."""
    ece_if_calibrated: float
    """Mean of `ece` under perfect calibration: the noise floor at this n."""
    ece_limit: float
    """95th percentile of the same."""
    p_calibrated: float
    """How often a perfectly calibrated model would show an `ece` at least as large."""
    brier: Estimate
    """Mean squared distance of probability and outcome."""
    auroc: Estimate | None
    """Do higher probabilities come true more often? None with fewer than `MIN_OUTCOMES` that came
    true, or that did not."""
    bins_width: tuple[ReliabilityBin, ...]
    bins_mass: tuple[ReliabilityBin, ...]

    @property
    def n(self) -> int:
        """Prompts or questions."""
        return self.outcome.n

    @property
    def verdict(self) -> Verdict:
        """What this n can tell: miscalibrated only where the ECE is beyond sampling noise.

        An ECE within the noise does not make a model calibrated: n may be too small to show it.
        """
        if self.p_calibrated >= ALPHA:
            return "no miscalibration shown"
        if self.gap.low > 0:
            return "overconfident"
        return "underconfident" if self.gap.high < 0 else "miscalibrated"


def reliability(
    probability: ArrayLike,
    outcome: ArrayLike,
    *,
    bins: int = BINS,
    clusters: Any = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Reliability | None:
    """Hold probabilities against outcomes.

    Args:
        probability: Stated, in [0, 1], shape (n,).
        outcome: Whether it came true, shape (n,).
        bins: Of the ECE and the diagram.
        clusters: Which rows belong together; None makes each its own.
        resamples: Of the test against sampling noise.
        seed: Of everything drawn.

    Returns:
        None with fewer than two rows or clusters.

    Raises:
        ValueError: The shapes differ, or a probability is outside [0, 1].
    """
    p, y = _checked(probability, outcome)
    own = stats.cluster_codes(clusters, len(p))
    gap = stats.paired_shift(p, y, clusters=own, most=1)
    mean = stats.share_estimate(p, clusters=own)
    brier = stats.share_estimate((p - y) ** 2, clusters=own)
    if gap is None or mean is None or brier is None:
        return None
    ece = expected_calibration_error(p, y, bins)
    null = _calibrated_eces(p, y, own, bins, resamples, seed)
    return Reliability(
        outcome=Rate.among(y, own),
        probability=mean,
        gap=gap,
        ece=ece,
        ece_mass=expected_calibration_error(p, y, bins, "mass"),
        ece_if_calibrated=float(null.mean()),
        ece_limit=float(np.quantile(null, 0.95)),
        p_calibrated=float((1 + (null >= ece - 1e-12).sum()) / (1 + resamples)),
        brier=brier,
        auroc=stats.auroc_estimate(
            p[y == 1], p[y == 0], clusters=(own[y == 1].tolist(), own[y == 0].tolist())
        )
        if min(y.sum(), (1 - y).sum()) >= MIN_OUTCOMES
        else None,
        bins_width=_diagram(p, y, own, bins, "width"),
        bins_mass=_diagram(p, y, own, bins, "mass"),
    )


def expected_calibration_error(
    probability: ArrayLike, outcome: ArrayLike, bins: int = BINS, binning: Binning = "width"
) -> float:
    """Mean over bins, weighted by count, of |mean outcome - mean probability|.

    Args:
        probability: In [0, 1], shape (n,), n ≥ 1.
        outcome: In [0, 1], shape (n,).
        bins: How many.
        binning: `width`: equal intervals of probability, each closed on the right; `mass`: equal
            counts, equal probabilities always together.

    Source: Guo et al. 2017 (arXiv 1706.04599); equal counts: Nguyen & O'Connor 2015.
    """
    p, y = _checked(probability, outcome)
    residual = np.bincount(_bin_of(p, bins, binning), weights=y - p)
    return float(np.abs(residual).sum() / len(p))


def ece_shift(
    cell: tuple[ArrayLike, ArrayLike],
    baseline: tuple[ArrayLike, ArrayLike],
    *,
    bins: int = BINS,
    clusters: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """ECE of a cell minus its baseline's, with an interval of the shift in the population.

    An ECE of a sample is too large by its noise, and the more so the better a model is calibrated:
    the difference of two has a bias. The interval reaches as far to both sides as that of a paired
    bootstrap does on its longer one, and further by what the bias can be. It is never narrower than
    that of no change in as many rows, of which a bootstrap knows nothing.

    Args:
        cell: Probabilities and outcomes, shape (n,) each.
        baseline: The same of the baseline, on the same rows.
        bins: Of equal width.
        clusters: Which rows belong together; None makes each its own.
        resamples: Of clusters of rows, the same rows on both sides.
        seed: Of the bootstrap.
    """
    sides = []
    for probability, outcome in (cell, baseline):
        p, y = _checked(probability, outcome)
        sides.append(np.eye(bins)[_bin_of(p, bins, "width")] * (y - p)[:, None])
    own = stats.cluster_codes(clusters, len(sides[0]))
    groups, n = int(own.max()) + 1, len(own)
    sums = np.zeros((2, groups, bins))
    for total, side in zip(sums, sides, strict=True):
        np.add.at(total, own, side)
    size: FloatArray = np.bincount(own).astype(np.float64)

    def difference(rows: NDArray[np.int64], axis: int = -1) -> FloatArray:
        cut = size[rows].sum(axis=-1)
        eces = [np.abs(side[rows].sum(axis=-2)).sum(axis=-1) / cut for side in sums]
        found: FloatArray = eces[0] - eces[1]
        return found

    rows: Any = np.arange(groups)
    value = float(difference(rows))
    least = stats.share_estimate(np.zeros(n), clusters=own, bounds=(-1.0, 1.0))
    low, high = stats.bootstrap_interval((rows,), difference, resamples, seed, method="percentile")
    below, above = _ece_bias(sums, n)
    assert least is not None
    reach = max(value - low, high - value, least.high)
    return Estimate(value, max(value - reach - above, -1.0), min(value + reach - below, 1.0), n)


def _ece_bias(sums: FloatArray, n: int) -> tuple[float, float]:
    """Bound the bias of a difference of two ECEs from below and above.

    A bin whose mean residual is m with standard error s adds E|N(m, s)| - |m| to the bias of its
    side: 0.8 s at m = 0 and nothing far from it. Its m is taken as known to 1.5 s. Bins that are
    the same on both sides have the same bias: two differ by no more than twice their distance,
    which is taken as known to two of its standard errors. Simulations chose both numbers.

    Args:
        sums: Residuals of each side, cluster and bin, shape (2, clusters, bins).
        n: Rows.
    """
    from scipy.stats import norm

    def moments(values: FloatArray) -> tuple[FloatArray, FloatArray]:
        away = values - values.mean(axis=-2, keepdims=True)
        mean: FloatArray = np.abs(values.sum(axis=-2)) / n
        error: FloatArray = np.sqrt((away**2).sum(axis=-2)) / n
        return mean, error

    def excess(mean: FloatArray, error: FloatArray) -> FloatArray:
        ratio = np.divide(mean, error, out=np.full_like(mean, np.inf), where=error > 0)
        found: FloatArray = 2 * error * (norm.pdf(ratio) - np.minimum(ratio, 9) * norm.sf(ratio))
        return found

    mean, error = moments(sums)
    most = excess(np.maximum(mean - 1.5 * error, 0), error)
    least = excess(mean + 1.5 * error, error)
    apart, spread = moments(sums[0] - sums[1])
    limit = 2 * apart + 4 * spread
    above = np.clip(most[0] - least[1], 0, limit).sum()
    below = np.clip(least[0] - most[1], -limit, 0).sum()
    return float(below), float(above)


def _checked(probability: ArrayLike, outcome: ArrayLike) -> tuple[FloatArray, FloatArray]:
    p, y = np.asarray(probability, np.float64), np.asarray(outcome, np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"probabilities {p.shape} and outcomes {y.shape} are not pairs")
    if ((p < 0) | (p > 1) | np.isnan(p)).any():
        raise ValueError("a probability is not in [0, 1]")
    return p, y


def _bin_of(p: FloatArray, bins: int, binning: Binning) -> NDArray[np.int64]:
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if binning == "mass":
        inner = np.quantile(p, inner)
    return np.searchsorted(inner, p, side="left").astype(np.int64)


def _calibrated_eces(
    p: FloatArray, y: FloatArray, own: NDArray[np.int64], bins: int, resamples: int, seed: int
) -> FloatArray:
    """ECEs of outcomes that are drawn from the stated probabilities, shape (resamples,).

    Rows of a cluster share the number that decides their outcomes as often as the design effect of
    y - p says: each with the root of that correlation as its chance.
    """
    rng = np.random.default_rng(seed)
    member = np.eye(bins)[_bin_of(p, bins, "width")]
    groups, n = int(own.max()) + 1, len(p)
    shared = np.sqrt(stats.shared_variation(y - p, own))
    parts = []
    for k in range(0, resamples, 200):
        rows = min(200, resamples - k)
        drawn = rng.random((rows, n))
        if shared > 0:
            common = rng.random((rows, groups))[:, own]
            drawn = np.where(rng.random((rows, n)) < shared, common, drawn)
        parts.append(np.abs(((drawn < p) - p) @ member).sum(axis=1))
    found: FloatArray = np.concatenate(parts) / n
    return found


def _diagram(
    p: FloatArray, y: FloatArray, own: NDArray[np.int64], bins: int, kind: Binning
) -> tuple[ReliabilityBin, ...]:
    which = _bin_of(p, bins, kind)
    return tuple(
        ReliabilityBin(float(p[here].mean()), Rate.among(y[here], own[here]))
        for here in (which == k for k in range(bins))
        if here.any()
    )
