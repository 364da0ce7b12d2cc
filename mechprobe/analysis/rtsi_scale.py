"""RTSI as arithmetic: weights and scales fitted to rows, scores, bands, leaving rows out.

Definitions: arXiv 2606.10154. `|delta|` of each feature is scaled to [0, 1] by its least and
greatest value over the calibration rows; the weight of a feature is |Pearson r| between its
signed delta and the refusal-rate delta over those rows, weights summing to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.analysis.grouped import LEAST, Groups, correlation, correlations_without
from mechprobe.analysis.templates import BOTH, FEATURES, GAINED, LOST
from mechprobe.errors import TableError

FloatArray = NDArray[np.float64]
MODERATE_FROM = 0.10
HIGH_FROM = 0.40
BANDS = ("LOW", "MODERATE", "HIGH", "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What scores are made with; the four entries of each tuple are in the order of `FEATURES`."""

    weights: tuple[float, ...]
    """At least 0, sum 1."""
    correlations: tuple[float | None, ...]
    """Signed deltas against refusal-rate deltas; None where the feature did not vary."""
    minima: tuple[float, ...]
    """Of |delta| over the rows."""
    maxima: tuple[float, ...]
    n: int
    """Rows that it was fitted on."""

    def score(self, deltas: ArrayLike) -> FloatArray:
        """Scores in [0, 1] of signed deltas, shape (n, 4); beyond the calibrated range is its end.

        NaN where a delta is.
        """
        return _scores(np.asarray(deltas, np.float64), self.weights, self.minima, self.maxima)

    def outside(self, deltas: ArrayLike) -> tuple[str, ...]:
        """Features of one checkpoint whose |delta|, shape (4,), exceeds all calibration rows'."""
        moved = np.abs(np.asarray(deltas, np.float64))
        return tuple(
            name for name, d, most in zip(FEATURES, moved, self.maxima, strict=True) if d > most
        )

    def as_dict(self) -> dict[str, Any]:
        """By feature."""
        parts = ("weights", "correlations", "minima", "maxima")
        named = {part: dict(zip(FEATURES, getattr(self, part), strict=True)) for part in parts}
        return {**named, "n": self.n}


def fit(deltas: ArrayLike, refusal: ArrayLike) -> Calibration:
    """Weights and scales from calibration rows.

    Args:
        deltas: Signed deltas of the four features, shape (n, 4).
        refusal: Refusal-rate deltas of the same rows, shape (n,); any unit.

    Raises:
        TableError: Fewer than three rows, a value that is not finite, refusal-rate deltas that do
            not vary, or no feature that goes with them.
    """
    x, y = np.asarray(deltas, np.float64), np.asarray(refusal, np.float64)
    if len(x) < LEAST:
        raise TableError(
            f"RTSI: {len(x)} rows with refusals on both sides; at least {LEAST} needed"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise TableError("RTSI: a delta of a calibration row is missing; leave that row out")
    found = np.array([correlation(x[:, k], y) for k in range(x.shape[1])])
    weights = _weights(found)
    if not np.isfinite(weights).all():
        raise TableError(
            "RTSI: no feature's delta goes with the refusal-rate delta over these rows; "
            "weights need rows that differ"
        )
    moved = np.abs(x)
    return Calibration(
        tuple(weights.tolist()),
        tuple(float(r) if np.isfinite(r) else None for r in found),
        tuple(moved.min(axis=0).tolist()),
        tuple(moved.max(axis=0).tolist()),
        len(x),
    )


def leave_out(deltas: ArrayLike, refusal: ArrayLike, groups: Groups) -> FloatArray:
    """Each row's score by weights and scales that were fitted without the rows of its group.

    Args:
        deltas: As for `fit`.
        refusal: As for `fit`.
        groups: Rows left out together; every row by itself for leave-one-row-out.

    Returns:
        Shape (n,); NaN where the other rows allow no fit.
    """
    x, y = np.asarray(deltas, np.float64), np.asarray(refusal, np.float64)
    moved = np.abs(x)
    columns = range(x.shape[1])
    found = np.stack([correlations_without(x[:, k], y, groups) for k in columns], axis=1)
    extremes = [groups.extremes_without(moved[:, k]) for k in columns]
    least, most = (np.stack([pair[side] for pair in extremes], axis=1) for side in (0, 1))
    own = groups.codes
    return _scores(x, _weights(found)[own], least[own], most[own])


def _weights(correlations: FloatArray) -> FloatArray:
    """|r| with sum 1 along the last axis; a feature that does not vary weighs nothing."""
    size = np.nan_to_num(np.abs(correlations))
    total = size.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, size / total, np.nan)


def _scores(deltas: FloatArray, weights: Any, minima: Any, maxima: Any) -> FloatArray:
    moved = np.abs(deltas)
    span = np.asarray(maxima, np.float64) - minima
    with np.errstate(invalid="ignore", divide="ignore"):
        # a feature that was the same in all rows: more than that is beyond the range
        scaled = np.where(span > 0, (moved - minima) / span, moved > maxima)
        total: FloatArray = (np.clip(scaled, 0.0, 1.0) * weights).sum(axis=-1)
    return np.where(np.isnan(moved).any(axis=-1), np.nan, np.clip(total, 0.0, 1.0))


def bands(scores: ArrayLike, template: ArrayLike) -> NDArray[np.str_]:
    """LOW < 0.10 ≤ MODERATE < 0.40 ≤ HIGH.

    A cell that lost all its refusals is HIGH whatever its score. UNKNOWN: neither side refused
    anything, the baseline was not measured, or there is no score.

    Args:
        scores: Shape (n,).
        template: As `drift` says, shape (n,).
    """
    s, t = np.asarray(scores, np.float64), np.asarray(template, dtype=object)
    scored = ((t == BOTH) | (t == GAINED)) & np.isfinite(s)
    return np.select(
        [t == LOST, ~scored, s < MODERATE_FROM, s < HIGH_FROM],
        ["HIGH", "UNKNOWN", "LOW", "MODERATE"],
        default="HIGH",
    )
