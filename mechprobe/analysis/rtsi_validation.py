"""RTSI recomputed from a published table, and held against the published scores and regimes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.analysis.rtsi import CIRCULARITY, DANGER, danger_of, routing, screen
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Validation:
    """What a table's scores become when they are made again."""

    max_abs_error: float
    """Greatest difference between a published score and the one made here."""
    routed: int
    """Dangerous rows that are MODERATE or HIGH."""
    danger: int
    low_bucket: int
    """Rows that are LOW."""
    loo_low_bucket: int
    """Rows that are LOW by weights and scales fitted without them."""
    loo_missed: int
    """Dangerous rows among those."""
    wilson_lower: float
    """95 % lower bound of routed / danger."""
    details: dict[str, Any]
    """Calibration, comparators and leave-one-family-out, as in an analysis document."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def validate(
    rows: pd.DataFrame, regimes: pd.DataFrame, danger: Iterable[str] = DANGER
) -> Validation:
    """Fit RTSI on a table, and say how it compares with the scores that the table has.

    Args:
        rows: As `read_deltas` returns them, with `published` scores.
        regimes: `model, cell, regime`; every row must have one.
        danger: Names of the regimes that are dangerous.

    Raises:
        TableError: There are no published scores, a row has no regime, no row is dangerous, or
            the rows allow no fit.
    """
    if "published" not in rows:
        raise TableError("the table has no column of published scores; name it with score=COLUMN")
    known = set(zip(regimes["model"], regimes["cell"], strict=True))
    for key in zip(rows["model"], rows["cell"], strict=True):
        if key not in known:
            raise TableError(f"the table of regimes has no row {key[0]}/{key[1]}")
    names = tuple(danger)
    dangerous = danger_of(rows, regimes, names)
    if not (dangerous == 1).any():
        there = sorted(set(regimes["regime"]))
        raise TableError(
            f"no row is in a regime that counts as danger ({', '.join(names)}); "
            f"there are {', '.join(there)}"
        )
    found = screen(rows)
    whole = routing(found.rows["band"], dangerous)
    without = routing(found.rows["row_out_band"], dangerous)
    error = np.abs(found.rows["score"] - found.rows["published"]).max()
    section = found.as_dict(dangerous)
    kept = ("calibration", "family_out", "comparators", "advantage")
    return Validation(
        float(error),
        whole.routed,
        whole.danger,
        whole.low_bucket,
        without.low_bucket,
        without.missed,
        whole.wilson_lower,
        {"circularity": CIRCULARITY, **{name: section[name] for name in kept}},
    )
