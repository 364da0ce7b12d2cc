"""A judge's own error, measured on labelled items and carried into every rate that it gives.

A judge that misses refusals, or sees them where there are none, shifts a rate. Rogan and Gladen's
estimator undoes that from the judge's sensitivity and specificity; the interval carries how little
is known of those two. The uncorrected figure always stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mechprobe import stats
from mechprobe.behavior.judges.base import REFUSALS, Judgement, refuses
from mechprobe.behavior.rate import Rate
from mechprobe.behavior.refusal import RefusalLabel
from mechprobe.errors import JudgeError
from mechprobe.stats import Estimate


@dataclass(frozen=True, slots=True)
class ErrorRate(Rate):
    """Sensitivity or specificity; labelled items of one cluster count together."""

    effective: float = 0.0
    """Independent items that would tell as much."""


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """How a judge reads items whose label is known; refusal is full or partial."""

    sensitivity: Rate
    """Share of true refusals that it calls refusals."""
    specificity: Rate
    """Share of the others that it does not."""
    missing: int
    """Labelled items that it called UNCLEAR, gave no label, or never saw: they are in no rate."""

    @property
    def youden(self) -> float | None:
        """Sensitivity + specificity - 1: 0 for a judge that knows nothing; None where unknown."""
        if self.sensitivity.rate is None or self.specificity.rate is None:
            return None
        return self.sensitivity.rate + self.specificity.rate - 1


Key = tuple[str, str, str, int]
"""Task, row, id, sample."""


def judge_error(judgements: Iterable[Judgement], truth: Mapping[Key, RefusalLabel]) -> ErrorRates:
    """A judge against labelled items.

    Args:
        judgements: Of one judge.
        truth: The right label by an item's key.

    Raises:
        JudgeError: None of the labelled items was judged.
    """
    seen = {one.key: one for one in judgements if refuses(one.label) is not None}
    known = [
        (label in REFUSALS, seen[key].label in REFUSALS, seen[key].cluster or key[2])
        for key, label in truth.items()
        if key in seen
    ]
    if truth and not known:
        raise JudgeError(
            "none of the labelled items was judged; their task, row, id and sample must be those "
            "of the judgements"
        )
    hits = [(said, cluster) for true, said, cluster in known if true]
    rejections = [(not said, cluster) for true, said, cluster in known if not true]
    return ErrorRates(_rate(hits), _rate(rejections), len(truth) - len(known))


def _rate(read: list[tuple[bool, str]]) -> ErrorRate:
    right, clusters = [one for one, _ in read], [cluster for _, cluster in read]
    size = stats.effective_size(right, clusters) if read else 0.0
    return ErrorRate(**asdict(Rate.among(right, clusters)), effective=size)


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A refusal rate as the judge gives it, and as it is after the judge's error."""

    uncorrected: Estimate | None
    corrected: Estimate | None
    """None where the judge's error is unknown, or where it is no better than chance."""


def corrected_rate(
    refuses: Sequence[bool],
    error: ErrorRates,
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> CorrectedRate:
    """The rate of refusals corrected for the judge's error: (r + sp - 1) / (se + sp - 1).

    The interval is that of draws of all three from their Beta(k + 1/2, n - k + 1/2), so that a
    judge without a mistake among few labelled items is not taken for a perfect one; items of one
    cluster count together (`stats.effective_size`). A rate that the judge's own mistakes alone
    would exceed is corrected to 0 (or 1); the labelled items then describe it badly, and its
    interval reaches at least to the end of the uncorrected one.

    Args:
        refuses: The judge's reading of each item.
        error: Of this judge.
        clusters: To which cluster each item belongs; None makes each its own.
        resamples: How many draws.
        seed: Of the draws.

    Source: Rogan and Gladen 1978.
    """
    x = np.asarray(refuses, np.float64)
    uncorrected = stats.share_estimate(x, clusters=clusters)
    youden = error.youden
    if uncorrected is None or youden is None or youden <= 0:
        return CorrectedRate(uncorrected, None)
    assert error.sensitivity.rate is not None
    assert error.specificity.rate is not None
    rng = np.random.default_rng(seed)
    rates, se, sp = (
        rng.beta(share * n + 0.5, (1 - share) * n + 0.5, resamples)
        for share, n in (
            (uncorrected.value, stats.effective_size(x, clusters)),
            *(
                (rate.rate or 0.0, rate.effective if isinstance(rate, ErrorRate) else rate.n)
                for rate in (error.sensitivity, error.specificity)
            ),
        )
    )
    power = se + sp - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (rates + sp - 1) / power
    # where a redrawn judge knows nothing, the rate may be anything: one end or the other
    draws = np.where(power > 0, draws, np.arange(resamples) % 2).clip(0, 1)
    raw = (uncorrected.value + error.specificity.rate - 1) / youden
    value = min(max(raw, 0.0), 1.0)
    low, high = (float(q) for q in np.quantile(draws, (0.025, 0.975)))
    if raw < 0:
        high = max(high, uncorrected.high)
    if raw > 1:
        low = min(low, uncorrected.low)
    return CorrectedRate(uncorrected, Estimate(value, min(low, value), max(high, value), len(x)))
