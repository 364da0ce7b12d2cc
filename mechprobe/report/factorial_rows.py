"""Rows of factorial.json as a page reads them."""

from __future__ import annotations

from collections.abc import Sequence

from mechprobe.analysis.factorial import SCHEMA
from mechprobe.errors import TableError
from mechprobe.report import words
from mechprobe.report.drawing import plain_name
from mechprobe.report.section import Row, Table

MOST_ROWS = 200


def checked(document: Row) -> Row:
    """The document, if this version of mechprobe can read it.

    Raises:
        TableError: Another version wrote it.
    """
    if document["schema"] != SCHEMA:
        raise TableError(
            f"factorial.json has schema {document['schema']}, this version reads {SCHEMA}; run the "
            "factorial again into the same directory: its answers are reused"
        )
    return document


def highest(document: Row) -> float:
    """The highest temperature of the design."""
    return float(max(document["design"]["temperatures"]))


def both_ends(document: Row, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Of each cell its rows at temperature 0 and at the highest, where both have an ASR."""
    ends: dict[float, dict[tuple[str, str], Row]] = {0.0: {}, highest(document): {}}
    for row in rows:
        if row["temperature"] in ends and row["asr"] is not None:
            ends[row["temperature"]][row["model"], row["cell"]] = row
    cold, hot = ends.values()
    return [(cold[key], hot[key]) for key in cold if key in hot]


def harmful(document: Row) -> list[Row]:
    """Rates of harmful prompts."""
    return [row for row in document["rates"] if row["request"] == "harmful"]


def cell_name(row: Row, models: int) -> str:
    """A cell as people read it; its model where there are several."""
    name = plain_name(row["cell"], 40)
    return f"{plain_name(row['model'])} {name}" if models > 1 else name


def models_of(document: Row) -> int:
    """Number of models."""
    return len({one["model"] for one in document["design"]["cells"]})


def share(row: Row, name: str) -> str:
    """A share with its interval."""
    if row[name] is None:
        return words.NOTHING
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    span = "" if low is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * row[name]:.1f}{span}"


def cut(rows: Sequence[tuple[str, ...]], head: tuple[str, ...], caption: str) -> Table:
    """A table of the first rows, which says how many it leaves out."""
    return Table(head, tuple(rows[:MOST_ROWS]), caption, max(0, len(rows) - MOST_ROWS))
