"""Sections that join the rows with what was seen inside and with how refusals are worded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechprobe.analysis.matrix import Matrix
from mechprobe.analysis.rows import REFUSAL
from mechprobe.analysis.sections import Section

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWERS = "the answers are not here: how refusals are worded is not known"


def joined_sections(
    matrix: Matrix,
    rows: Sequence[Section],
    frame: pd.DataFrame,
    outcomes: pd.DataFrame | None,
    templates: pd.DataFrame | None,
) -> dict[str, Section]:
    """The sections `pairings`, `separators` and `rtsi`; each row is told its own RTSI."""
    rtsi = _rtsi(rows, templates)
    found = {(one["model"], one["cell"]): one for one in rtsi.get("rows", ())}
    for row in rows:
        one = found.get((row["model"], row["cell"]))
        row["rtsi"] = one and {"score": one["score"], "band": one["band"]}
    return {
        "pairings": _pairings(matrix, outcomes),
        "separators": _separators(matrix, rows, frame),
        "rtsi": rtsi,
    }


def _pairings(matrix: Matrix, outcomes: pd.DataFrame | None) -> Section:
    from mechprobe.analysis.pairings import pairings_section

    if outcomes is None or outcomes.empty:
        return {"not_measured": "no outcomes by prompt"}
    choice = matrix.choice
    return pairings_section(
        outcomes, instrument=choice.instruments.get(REFUSAL), second=choice.second
    )


def _rtsi(rows: Sequence[Section], templates: pd.DataFrame | None) -> Section:
    import pandas as pd

    from mechprobe.analysis.rtsi import rtsi_section

    if templates is None or templates.empty:
        return {"not_measured": NO_ANSWERS}
    danger = pd.DataFrame([{k: row[k] for k in ("model", "cell", "danger")} for row in rows])
    return rtsi_section(templates, danger)


def _separators(matrix: Matrix, rows: Sequence[Section], frame: pd.DataFrame) -> Section:
    import pandas as pd

    from mechprobe.analysis.separators import separators_section

    outcomes = []
    for row, delta in zip(rows, matrix.primary(REFUSAL), strict=True):
        points = delta.points if delta else None
        if row["baseline"]:
            outcomes.append(
                {
                    "model": row["model"],
                    "cell": row["cell"],
                    "refusal": None if points is None else float(points),
                    "danger": None if row["danger"] is None else float(row["danger"]),
                    "hidden": _hidden(row),
                    "rtsi": row["rtsi"] and row["rtsi"]["score"],
                }
            )
    columns = ["model", "cell", "refusal", "danger", "hidden", "rtsi"]
    return separators_section(
        frame, pd.DataFrame(outcomes, columns=columns), seed=matrix.parameters.get("seed", 0)
    )


def _hidden(row: Section) -> float | None:
    """Whether a row is a danger that quality hides; None where one of both is not known."""
    if row["danger"] is None or (row["danger"] and row["hidden"] is None):
        return None
    return float(bool(row["hidden"]))
