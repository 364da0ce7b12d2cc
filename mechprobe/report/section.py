"""What a report is made of: sections with plain words, a figure and a table.

A new kind of result becomes a module with a function that returns a `Section`, and a line in
`mechprobe/report/sections.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.regimes import lost_refusals
from mechprobe.report import palette

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_SHORT = {
    "quality": "Quality",
    "agreement": "Second instrument",
    "pairings": "Pairings",
    "rtsi": "RTSI",
    "separators": "Probes",
    "gaps": "Gaps",
}
MOST_POINTS = 600
"""Points of a figure: more of them say less, and a page has to stay small."""


@dataclass(frozen=True)
class Material:
    """What a report is made from."""

    name: str
    """Of the run."""
    document: Mapping[str, Any]
    """analysis.json, docs/analysis.md."""
    matrix: pd.DataFrame | None = None
    """Rows of matrix.csv: where probes and checkpoints are read from."""
    outcomes: pd.DataFrame | None = None
    """Outcomes by prompt: which prompts changed, by id."""
    factorial: Mapping[str, Any] | None = None
    """The document of a temperature factorial, where one was run."""

    @property
    def rows(self) -> Sequence[Row]:
        """Of the document, in the order of the matrix."""
        rows: Sequence[Row] = self.document["rows"]
        return rows

    def measure(self, role: str) -> str | None:
        """Name of the measure that is this run's `refusal` or `quality`."""
        name: str | None = self.document["preset"]["measures"].get(role)
        return name

    def delta(self, row: Row, role: str) -> Row | None:
        """A row's delta of `refusal` or `quality`; None where it was not measured."""
        found: Row | None = row["deltas"].get(self.measure(role) or "")
        return found if found and found["points"] is not None else None

    def quantized(self) -> list[Row]:
        """Rows that are held against a baseline."""
        return [row for row in self.rows if row["baseline"]]

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The one verdict of the document."""
        found: Mapping[str, Any] = self.document["verdict"]
        return found

    def lost(self, row: Row) -> bool:
        """Whether refusals fell beyond the threshold, whatever quality did."""
        return bool(lost_refusals(self.delta(row, "refusal"), self.document["preset"]))

    def unnamed_loss(self, row: Row) -> bool:
        """Whether a row lost refusals and its regime, without quality none, does not say so."""
        return self.lost(row) and row["regime"] not in palette.LOSSES


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    more: int = 0
    """Rows that were left out."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure and what it shows, for people who do not see it."""

    name: str
    """Of its files."""
    figure: Figure
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page: a question, its answer in words, then what the answer rests on."""

    key: str
    title: str
    said: tuple[str, ...]
    """Plain sentences, the answer first."""
    figures: tuple[Drawn, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What to hold against the answer."""

    @property
    def short(self) -> str:
        """For the list of parts."""
        return _SHORT.get(self.key, self.title)


def absent(key: str, title: str, reason: str) -> Section:
    """A section that says why it has nothing to say."""
    return Section(key, title, (f"Not measured: {reason.rstrip('.')}.",))


def why_not(part: Any) -> str | None:
    """The reason why a part of the document is missing; None where it is there."""
    if not part:
        return "the analysis holds no such part"
    reason = part.get("not_measured") if len(part) == 1 else None
    return str(reason) if reason else None
