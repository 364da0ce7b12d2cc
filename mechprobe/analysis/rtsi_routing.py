"""What a screen routes, and what simpler scores would have routed with as many rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe import stats
from mechprobe.analysis.rtsi_scale import Calibration
from mechprobe.analysis.templates import DELTAS, FEATURES

if TYPE_CHECKING:
    import pandas as pd

DANGER = ("hidden_danger", "near_hidden_danger", "joint_collapse")
"""Regimes that a screen must route; the last one is known to mechprobe's own presets only."""
_UNDECIDED = ("not_measured", "baseline")
_TIE = 9
"""Decimals beyond which values are ties: a share such as 5 of 100 has no exact float64."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What a screen did with the dangerous rows that it could band."""

    rows: int
    """With a band; UNKNOWN is none."""
    danger: int
    routed: int
    """Dangerous rows that are MODERATE or HIGH."""
    missed: int
    """Dangerous rows that are LOW."""
    low_bucket: int
    """All rows that are LOW, and so are spared the direct test."""
    wilson_lower: float
    """Of routed / danger, 95 %."""
    wilson_upper: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparator:
    """What another score finds when it may route as many rows as RTSI does."""

    name: str
    signed: bool
    """Ranked by the delta in the direction of refusal loss; else by its size."""
    bucket: int
    """Rows routed."""
    danger: int
    caught: int
    """Dangerous rows among them, ties at the edge of the bucket broken against the comparator."""
    caught_at_most: int
    """Ties broken in its favour."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def danger_of(
    rows: pd.DataFrame, regimes: pd.DataFrame, danger: Iterable[str] = DANGER
) -> NDArray[np.float64]:
    """Whether each row is dangerous, by its regime: 1, 0, or NaN where nobody knows.

    Args:
        rows: With `model, cell`.
        regimes: `model, cell, regime`.
        danger: Names of the regimes that are dangerous.
    """
    by_cell = regimes.set_index(["model", "cell"])["regime"].to_dict()
    names = [by_cell.get(key) for key in zip(rows["model"], rows["cell"], strict=True)]
    wanted = set(danger)
    return np.array(
        [
            np.nan if not isinstance(name, str) or name in _UNDECIDED else float(name in wanted)
            for name in names
        ],
        np.float64,
    )


def routing(band: ArrayLike, danger: ArrayLike) -> Routing:
    """Count what became of the dangerous rows.

    Args:
        band: Shape (n,).
        danger: 1, 0 or NaN, shape (n,).
    """
    names, dangerous = np.asarray(band), np.asarray(danger, np.float64) == 1
    known, low = names != "UNKNOWN", names == "LOW"
    total, missed = int((dangerous & known).sum()), int((dangerous & low).sum())
    lower, upper = stats.wilson(total - missed, total)
    return Routing(int(known.sum()), total, total - missed, missed, int(low.sum()), lower, upper)


def caught(values: ArrayLike, danger: ArrayLike, bucket: int) -> tuple[int, int]:
    """Dangerous rows among the `bucket` rows of greatest value: at least, and at most by ties."""
    found = np.round(np.asarray(values, np.float64), _TIE)
    dangerous = np.asarray(danger, np.float64) == 1
    if bucket == 0:
        return 0, 0
    edge = np.sort(found)[::-1][bucket - 1]
    above, tied = found > edge, found == edge
    sure, free = int((above & dangerous).sum()), bucket - int(above.sum())
    tied_danger, tied_rest = int((tied & dangerous).sum()), int((tied & ~dangerous).sum())
    return sure + max(0, free - tied_rest), sure + min(free, tied_danger)


def comparators(
    rows: pd.DataFrame, danger: ArrayLike, bucket: int, calibration: Calibration
) -> list[Comparator]:
    """Single features and the refusal-rate delta, each by size and by sign, best first.

    Args:
        rows: As `drift` returns them, with refusals on both sides.
        danger: 1, 0 or NaN, shape (n,).
        bucket: How many of these rows RTSI routes.
        calibration: The signs of its correlations say which way a feature goes with refusal loss.
    """
    signs = [-np.sign(r or 0.0) for r in calibration.correlations]
    names = (*FEATURES, "refusal_rate")
    columns = (*DELTAS, "refusal_delta")
    total = int((np.asarray(danger, np.float64) == 1).sum())
    found = []
    for name, column, sign in zip(names, columns, (*signs, -1.0), strict=True):
        deltas = rows[column].to_numpy(np.float64)
        for signed, values in ((False, np.abs(deltas)), (True, sign * deltas)):
            found.append(Comparator(name, signed, bucket, total, *caught(values, danger, bucket)))
    return sorted(found, key=lambda one: (-one.caught, -one.caught_at_most))
