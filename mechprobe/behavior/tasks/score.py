"""Rows become scores, each with its interval, its instrument, and what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechprobe import stats
from mechprobe.behavior.tasks.item import Row
from mechprobe.errors import ParityError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one task, as one instrument reads it."""

    measure: str
    group: str
    """Which rows it is of, `all` or a named part."""
    instrument: str
    value: float | None
    """None is `not measured`, never 0."""
    low: float | None
    high: float | None
    n: int
    """Rows behind the value."""
    missing: int = 0
    """Rows of the group that could not be read and are in no average."""

    def __str__(self) -> str:
        """For a table: `refusal_rate (harmful, hard) 0.412 [0.330, 0.498], n = 136`."""
        name = f"{self.measure} ({self.group}, {self.instrument})"
        if self.value is None:
            return f"{name} not measured"
        span = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        left = f", {self.missing} unread" if self.missing else ""
        return f"{name} {self.value:.3f}{span}, n = {self.n}{left}"


@dataclass(frozen=True, slots=True)
class Scored:
    """A task's answers as one instrument reads them."""

    task: str
    digest: str
    """Of the task's items."""
    instrument: str
    rows: tuple[Row, ...]
    scores: tuple[Score, ...]
    prompts: str | None = None
    """Digest of the token ids that were answered, where it is known."""

    def score(self, measure: str, group: str = "all") -> Score:
        """The score of this name.

        Raises:
            KeyError: There is none; the message lists those there are.
        """
        for found in self.scores:
            if (found.measure, found.group) == (measure, group):
                return found
        there = ", ".join(f"{s.measure} ({s.group})" for s in self.scores)
        raise KeyError(f"no score {measure} ({group}); there are {there}")

    def frame(self) -> pd.DataFrame:
        """The rows as a table, one line per answer."""
        import pandas as pd

        return pd.DataFrame([{"task": self.task, **row.as_dict()} for row in self.rows])


def mean_score(
    measure: str,
    group: str,
    rows: Sequence[Row],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    values: Sequence[float | None] | None = None,
) -> Score:
    """The mean of the rows' values with a 95 % interval.

    Rows of one cluster count together; see `stats.share_estimate`.

    Args:
        measure: Its name.
        group: Which part of the task the rows are.
        rows: Rows; those without a value are counted as missing.
        bounds: Between which a value can lie.
        values: Taken instead of the rows' own.
    """
    own = [row.reading.value for row in rows] if values is None else list(values)
    kept = [(v, row.item.cluster) for v, row in zip(own, rows, strict=True) if v is not None]
    instrument = rows[0].instrument if rows else ""
    missing = len(rows) - len(kept)
    if not kept:
        return Score(measure, group, instrument, None, None, None, 0, missing)
    numbers, clusters = zip(*kept, strict=True)
    found = stats.share_estimate(numbers, clusters=clusters, bounds=bounds)
    if found is None:
        return Score(measure, group, instrument, None, None, None, 0, missing)
    return Score(measure, group, instrument, found.value, found.low, found.high, found.n, missing)


def pair(cell: Scored, baseline: Scored) -> list[tuple[Row, Row]]:
    """The rows of a cell beside those of its baseline, item by item and sample by sample.

    Raises:
        ParityError: Task, instrument (its encoder included), items or token ids differ.
    """
    for what, a, b in (
        ("tasks", cell.task, baseline.task),
        ("instruments", cell.instrument, baseline.instrument),
        ("items", cell.digest[:12], baseline.digest[:12]),
        ("prompt digests", (cell.prompts or "")[:12], (baseline.prompts or "")[:12]),
    ):
        known = what != "prompt digests" or (a and b)
        if known and a != b:
            raise ParityError(
                f"{cell.task}: {what} differ ({a} and {b}); score both cells in the same way"
            )
    other: dict[Any, Row] = {(row.item.id, row.sample): row for row in baseline.rows}
    mine = {(row.item.id, row.sample) for row in cell.rows}
    if mine != set(other):
        raise ParityError(
            f"{cell.task}: {len(mine)} and {len(other)} answers do not pair; take as many samples "
            "of both"
        )
    return [(row, other[row.item.id, row.sample]) for row in cell.rows]
