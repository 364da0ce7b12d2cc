"""The rows of a matrix and their deltas, whoever measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.instruments import InstrumentAgreement
from mechprobe.analysis.rows import Choice, Delta, Key
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

WHO = ("model", "family", "cell", "precision", "engine", "baseline", "status", "error")
NO_OUTCOMES = "the cell, or what it is held against, has no outcomes of it"


@dataclass(frozen=True)
class Matrix:
    """Rows and their deltas, whoever measured them."""

    rows: Sequence[Mapping[str, Any]]
    """Of the matrix: `model, family, cell, precision, engine, baseline, status, error`."""
    deltas: Mapping[Key, Mapping[str, Delta]]
    choice: Choice
    frequency: Sequence[dict[str, float] | None] | None = None
    """By row; None where there are no outcomes by prompt."""
    agreement: InstrumentAgreement | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """What was asked for and not measured, and why."""

    def of(self, row: Mapping[str, Any], measure: str | None, name: str | None) -> Delta | None:
        """The delta of one measure of a row as one instrument reads it."""
        if measure is None or name is None:
            return None
        return self.deltas.get((row["model"], row["cell"], measure), {}).get(name)

    def primary(self, measure: str | None) -> list[Delta | None]:
        """One delta per row, as the instrument that counts reads it."""
        name = self.choice.instruments.get(measure or "")
        return [self.of(row, measure, name) for row in self.rows]

    @cached_property
    def errors(self) -> dict[tuple[str, str], str]:
        """What failed, by model and cell; empty where nothing did."""
        return {(row["model"], row["cell"]): row["error"] for row in self.rows}

    def shown(self, row: Mapping[str, Any]) -> dict[str, Delta]:
        """Every delta of a row by measure; what it lacks says why. A baseline has none."""
        names = self.choice.instruments.items() if row["baseline"] else ()
        return {
            measure: self.of(row, measure, name) or self._absent(row, measure, name)
            for measure, name in names
        }

    def _absent(self, row: Mapping[str, Any], measure: str, name: str) -> Delta:
        base = self.errors.get((row["model"], row["baseline"]))
        reason = row["error"] or (f"its baseline failed: {base}" if base else NO_OUTCOMES)
        return Delta(measure, name, not_measured=reason)


def matrix_rows(matrix: pd.DataFrame) -> list[dict[str, Any]]:
    """Who each line of a matrix is.

    Raises:
        TableError: A column is missing.
    """
    for name in ("model", "precision", "engine", "baseline"):
        if name not in matrix:
            raise TableError(f"matrix: no column {name!r}; see docs/analysis.md")
    text = {
        name: (matrix[name] if name in matrix else matrix["model"].map(lambda _: "")).fillna("")
        for name in WHO
        if name != "cell"
    }
    rows = []
    for values in zip(*(column.astype(str) for column in text.values()), strict=True):
        row = dict(zip(text, values, strict=True))
        row["status"] = row["status"] or "ok"
        rows.append({**row, "cell": f"{row['precision']}@{row['engine']}"})
    return rows
