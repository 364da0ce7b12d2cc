"""RTSI, the Refusal Template Stability Index: a screen from the wording of refusals.

A checkpoint whose refusals are worded otherwise than its baseline's is routed to direct safety
testing; one whose score is LOW is not. Source: arXiv 2606.10154; definitions in `templates.py` and
`rtsi_scale.py`.

**The circularity.** The weights are fitted to the refusal loss that the score is then asked to
route, on the same responses. Whoever has those responses has the refusal-rate delta too, and that
plain number is the comparator to beat. So every result here carries `CIRCULARITY`, and beside RTSI
stands what single features and the refusal-rate delta find in a bucket of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.analysis.grouped import Groups
from mechprobe.analysis.rtsi_routing import (
    DANGER,
    Comparator,
    Routing,
    comparators,
    danger_of,
    routing,
)
from mechprobe.analysis.rtsi_scale import BANDS, Calibration, bands, fit, leave_out
from mechprobe.analysis.templates import (
    BOTH,
    DEFINITIONS,
    DELTAS,
    GAINED,
    TEMPLATE,
    TemplateFeatures,
    drift,
    template_features,
)
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CIRCULARITY",
    "DANGER",
    "Calibration",
    "Comparator",
    "Routing",
    "Screened",
    "TemplateFeatures",
    "bands",
    "comparators",
    "danger_of",
    "drift",
    "fit",
    "leave_out",
    "routing",
    "rtsi_section",
    "screen",
    "template_features",
]

CIRCULARITY = (
    "RTSI's weights are fitted to the refusal loss that it is then asked to route, on the same "
    "responses; the plain |refusal-rate delta| of those responses is the comparator to beat."
)
_LEFT_OUT = {"row_out": "row", "family_out": "family"}


@dataclass(frozen=True)
class Screened:
    """Rows with scores and bands, and how they came by them."""

    calibration: Calibration
    stored: bool
    """Whether the calibration was given; else it was fitted on these rows."""
    rows: pd.DataFrame
    """As `drift` returns them, with `score, band` and, where it was fitted here, `row_out,
    row_out_band, family_out, family_out_band`: by calibrations fitted without the row and without
    its family. A score that could not be made is NaN, its band UNKNOWN."""

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which rows have refusals on both sides; on those a calibration is fitted."""
        return np.asarray(self.rows[TEMPLATE] == BOTH)

    def as_dict(self, danger: NDArray[np.float64]) -> dict[str, Any]:
        """The section `rtsi` of an analysis document, of plain JSON values.

        Args:
            danger: 1, 0 or NaN for each row.
        """
        inside, band = self.inside, self.rows["band"].to_numpy()
        bucket = int((inside & (band != "LOW")).sum())
        against = comparators(self.rows[inside], danger[inside], bucket, self.calibration)
        plain = next(one for one in against if one.name == "refusal_rate" and not one.signed)
        return {
            "circularity": CIRCULARITY,
            "definitions": dict(DEFINITIONS),
            "calibration": self.calibration.as_dict() | {"stored": self.stored},
            "bands": {name: int((band == name).sum()) for name in BANDS},
            "routing": routing(band, danger).as_dict(),
            **{name: self._without(name, danger) for name in _LEFT_OUT if name in self.rows},
            "comparators": [one.as_dict() for one in against],
            "advantage": routing(band[inside], danger[inside]).routed - plain.caught,
            "rows": _records(self.rows, danger),
        }

    def _without(self, name: str, danger: NDArray[np.float64]) -> dict[str, Any]:
        if not np.isfinite(self.rows[name].to_numpy(np.float64)[self.inside]).any():
            return {
                "not_measured": f"the rows outside one {_LEFT_OUT[name]} allow no fit of their own"
            }
        band = self.rows[f"{name}_band"].to_numpy()
        other = band != self.rows["band"].to_numpy()
        names = (self.rows["model"] + "/" + self.rows["cell"])[other].tolist()
        return {**routing(band, danger).as_dict(), "changes": names}


def screen(rows: pd.DataFrame, calibration: Calibration | None = None) -> Screened:
    """Score and band every row, and again by calibrations that did not see it.

    Args:
        rows: As `drift` returns them.
        calibration: A stored one; by default one is fitted on the rows with refusals on both
            sides.

    Raises:
        TableError: The rows allow no fit.
    """
    deltas = rows[list(DELTAS)].to_numpy(np.float64)
    refusal = rows["refusal_delta"].to_numpy(np.float64)
    template = rows[TEMPLATE].to_numpy()
    inside = template == BOTH
    scale = calibration or fit(deltas[inside], refusal[inside])
    # features of nothing are 0 by convention, and their deltas no drift
    worded = np.isin(template, [BOTH, GAINED])
    scores = np.where(worded, scale.score(deltas), np.nan)
    found = rows.assign(score=scores, band=bands(scores, template))
    if calibration is not None:
        return Screened(scale, True, found)
    families = Groups.of(rows["family"].to_numpy()[inside])
    every = Groups.of(np.arange(int(inside.sum())))
    for name, groups in zip(_LEFT_OUT, (every, families), strict=True):
        without = scores.copy()
        without[inside] = leave_out(deltas[inside], refusal[inside], groups)
        found[name], found[f"{name}_band"] = without, bands(without, template)
    return Screened(scale, False, found)


def rtsi_section(
    templates: pd.DataFrame,
    danger: pd.DataFrame,
    *,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """The section `rtsi` of an analysis document, of plain JSON values.

    Args:
        templates: As `drift` takes them.
        danger: `model, cell, danger`, one row per cell: whether refusals were lost, None where
            nobody knows.
        calibration: A stored one; by default one is fitted here, and left-out scores are given.

    Returns:
        `{"not_measured": reason}` alone where the rows allow no fit.
    """
    rows = drift(templates)
    known = danger.set_index(["model", "cell"])["danger"].to_dict()
    keys = zip(rows["model"], rows["cell"], strict=True)
    lost = np.array([np.nan if (one := known.get(key)) is None else one for key in keys], float)
    try:
        return screen(rows, calibration).as_dict(lost)
    except TableError as error:
        return {"not_measured": str(error)}


def _records(found: pd.DataFrame, danger: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows as plain values; NaN is None."""
    plain = found.astype(object).where(found.notna(), None).to_dict("records")
    flags = [None if np.isnan(one) else bool(one) for one in danger]
    return [
        {**{str(name): value for name, value in row.items()}, "danger": flag}
        for row, flag in zip(plain, flags, strict=True)
    ]
