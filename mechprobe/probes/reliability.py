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
        clusters: Which rows belong together.
        resamples: Of the test against sampling noise.
        seed: Of everything drawn.

    Returns:
        None with fewer than two rows or clusters.

    Raises:
        ValueError: The shapes differ, or a probability is outside [0, 1].
    """
    p, y = _checked(probability, outcome)
    gap = stats.paired_shift(p, y, clusters=clusters, seed=seed)
    mean = stats.mean_estimate(p, clusters=clusters, seed=seed)
    brier = stats.mean_estimate((p - y) ** 2, clusters=clusters, seed=seed)
    if gap is None or mean is None or brier is None:
        return None
    ece = expected_calibration_error(p, y, bins)
    null = _calibrated_eces(p, bins, resamples, seed)
    return Reliability(
        outcome=Rate.of(int(y.sum()), len(y)),
        probability=mean,
        gap=gap,
        ece=ece,
        ece_mass=expected_calibration_error(p, y, bins, "mass"),
        ece_if_calibrated=float(null.mean()),
        ece_limit=float(np.quantile(null, 0.95)),
        p_calibrated=float((1 + (null >= ece - 1e-12).sum()) / (1 + resamples)),
        brier=brier,
        auroc=stats.auroc_estimate(p[y == 1], p[y == 0], seed=seed)
        if min(y.sum(), (1 - y).sum()) >= MIN_OUTCOMES
        else None,
        bins_width=_diagram(p, y, bins, "width"),
        bins_mass=_diagram(p, y, bins, "mass"),
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
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """ECE of a cell minus its baseline's, with a percentile interval of a paired bootstrap.

    Args:
        cell: Probabilities and outcomes, shape (n,) each.
        baseline: The same of the baseline, on the same rows.
        bins: Of equal width.
        resamples: Of rows, the same rows on both sides.
        seed: Of the bootstrap.
    """
    from scipy.stats import bootstrap

    sides = []
    for probability, outcome in (cell, baseline):
        p, y = _checked(probability, outcome)
        sides.append(np.eye(bins)[_bin_of(p, bins, "width")] * (y - p)[:, None])

    def difference(rows: NDArray[np.int64], axis: int = -1) -> FloatArray:
        eces = [np.abs(side[rows].sum(axis=-2)).sum(axis=-1) / rows.shape[-1] for side in sides]
        found: FloatArray = eces[0] - eces[1]
        return found

    rows = np.arange(len(sides[0]))
    interval = bootstrap(
        (rows,),
        difference,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        batch=128,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(difference(rows)), float(interval.low), float(interval.high), len(rows))


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


def _calibrated_eces(p: FloatArray, bins: int, resamples: int, seed: int) -> FloatArray:
    """ECEs of outcomes that are drawn from the stated probabilities, shape (resamples,)."""
    rng = np.random.default_rng(seed)
    member = np.eye(bins)[_bin_of(p, bins, "width")]
    parts = [
        np.abs(((rng.random((min(200, resamples - k), len(p))) < p) - p) @ member).sum(axis=1)
        for k in range(0, resamples, 200)
    ]
    found: FloatArray = np.concatenate(parts) / len(p)
    return found


def _diagram(p: FloatArray, y: FloatArray, bins: int, kind: Binning) -> tuple[ReliabilityBin, ...]:
    which = _bin_of(p, bins, kind)
    return tuple(
        ReliabilityBin(float(p[here].mean()), Rate.of(int(y[here].sum()), int(here.sum())))
        for here in (which == k for k in range(bins))
        if here.any()
    )
