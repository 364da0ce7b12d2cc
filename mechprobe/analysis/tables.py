"""A matrix from elsewhere: which column is what, and numbers kept as they are written.

A table has rates or counts, seldom outcomes by prompt. What cannot be paired is not invented: its
tests stay `not measured`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.analysis.regimes import Exact
from mechprobe.errors import TableError
from mechprobe.textfiles import MalformedError, parse_csv, read_text

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("refusal", "quality", "second")
"""Refusal by the first instrument, quality, refusal by the second instrument."""
PARTS = ("count", "n", "rate", "points", "lost", "gained")
WHO = ("model", "family", "cell", "engine", "baseline")
FIELDS = (*WHO, *(f"{measure}_{part}" for measure in MEASURES for part in PARTS))
_KNOWN_AS = {
    "model": ("base_model",),
    "cell": ("precision", "quant"),
    "baseline": ("baseline_quant",),
    "refusal_count": ("harmful_refusal_count",),
    "refusal_n": ("harmful_refusal_n", "safety_refusal_rate_n"),
    "refusal_rate": ("harmful_refusal_rate", "safety_refusal_rate"),
    "refusal_points": (
        "refusal_delta_points",
        "harmful_refusal_delta_points",
        "refusal_delta_pp",
    ),
    "refusal_lost": ("harmful_refusals_lost",),
    "refusal_gained": ("harmful_refusals_gained",),
    "quality_rate": ("quality",),
    "quality_points": ("quality_delta_points", "bertscore_delta_pp"),
    "second_points": ("judge_refusal_delta_pp",),
}
"""Other names of a field: those of mechprobe's own matrix and of arXiv 2606.10154."""


@dataclass(frozen=True, slots=True)
class Written:
    """A number as it was written: its value, and how far rounding may have moved it."""

    value: Fraction
    half: Fraction
    """Half a unit of the last digit."""

    def times(self, factor: Fraction) -> Written:
        """The number on another scale."""
        return Written(self.value * factor, self.half * factor)

    def whole(self) -> int | None:
        """The only whole number that it can be a rounding of; None where none or more than one."""
        if self.half >= Fraction(1, 2):
            return None
        nearest = round(self.value)
        # a float that was written in full is off in its last digit
        return nearest if abs(self.value - nearest) <= self.half + _FULL else None


_FULL = Fraction(1, 10**9)
_OWN = (
    ("count", "count"),
    ("n", "n"),
    ("rate", "rate"),
    ("rate", "value"),
    ("points", "delta_points"),
)
"""Parts of a measure, and how mechprobe's own matrix ends their columns."""


def _places(text: str) -> int:
    mantissa, _, exponent = text.strip().lower().partition("e")
    try:
        return len(mantissa.partition(".")[2]) - int(exponent or 0)
    except ValueError:
        return 0  # no number, which is said where it is read


@dataclass(frozen=True)
class Table:
    """A table with its fields found."""

    path: Path
    columns: Mapping[str, str]
    """By field, the column that holds it."""
    sizes: Mapping[str, int]
    """By measure, prompts of every row, where no column says it."""
    frame: pd.DataFrame
    """Text; an empty field is an empty string."""
    _digits: dict[str, int] = field(default_factory=dict, repr=False)

    def digits(self, field: str) -> int:
        """Decimal places of a column: the most that one of its numbers has.

        A float is written without its last zeros, so that a single short number says nothing.
        """
        column = self.columns[field]
        if column not in self._digits:
            self._digits[column] = max(map(_places, self.frame[column]), default=0)
        return self._digits[column]

    def lines(self) -> Iterator[Line]:
        """The rows, with where they stand in the file."""
        for place, row in zip(self.frame.index, self.frame.to_dict("records"), strict=True):
            yield Line(self, place, {str(name): str(text) for name, text in row.items()})


@dataclass(frozen=True)
class Line:
    """One row of a table."""

    table: Table
    place: int
    """Its line in the file."""
    cells: Mapping[str, str]

    def error(self, field: str, said: str) -> TableError:
        """What is wrong with a field, in one line."""
        column = self.table.columns.get(field, field)
        return TableError(f"{self.table.path}, line {self.place}, column {column}: {said}")

    def text(self, field: str) -> str:
        """A field, or nothing where the table has no such column."""
        column = self.table.columns.get(field)
        return "" if column is None else self.cells[column].strip()  # an index has the name ""

    def number(self, field: str) -> Written | None:
        """A field as it is written; None where it is empty.

        Raises:
            TableError: It is no number.
        """
        text = self.text(field)
        if not text:
            return None
        try:
            value = Fraction(text)
        except (ValueError, ZeroDivisionError) as error:
            raise self.error(field, f"{text!r} is no number") from error
        return Written(value, Fraction(1, 2) / Fraction(10) ** self.table.digits(field))

    def count(self, field: str) -> int | None:
        """A field as a count.

        Raises:
            TableError: It is no whole number from 0 on.
        """
        found = self.number(field)
        if found is None:
            return None
        if found.value.denominator != 1 or found.value < 0:
            raise self.error(field, f"{self.text(field)} is no count")
        return int(found.value)

    def size(self, measure: str) -> int | None:
        """Prompts behind a measure; None where nobody said.

        Raises:
            TableError: The number of prompts is 0 or no count.
        """
        given = self.count(f"{measure}_n")
        if given == 0:
            raise self.error(f"{measure}_n", "0 prompts; leave the field empty if not measured")
        return self.table.sizes.get(measure) if given is None else given

    def rate(self, measure: str) -> tuple[Exact, int | None]:
        """The share of a measure, and its count where that is certain.

        Raises:
            TableError: A share lies outside [0, 1], or no count of the prompts rounds to it.
        """
        n, count = self.size(measure), self.count(f"{measure}_count")
        if count is not None:
            if n is None or count > n:
                raise self.error(f"{measure}_count", f"{count} of {n or 'unknown'} prompts")
            return Fraction(count, n), count
        given = self.number(f"{measure}_rate")
        if given is None:
            return None, None
        if not 0 <= given.value <= 1:
            text = self.text(f"{measure}_rate")
            raise self.error(f"{measure}_rate", f"{text} is no share between 0 and 1")
        if n is None or measure == "quality":
            return given.value, None
        return self._of_prompts(f"{measure}_rate", given, n, 1)

    def points(self, measure: str) -> tuple[Exact, Fraction]:
        """A delta that the table itself gives, in points, and what rounding may hide in it.

        Raises:
            TableError: No difference of counts rounds to it.
        """
        given, n = self.number(f"{measure}_points"), self.size(measure)
        if given is None:
            return None, Fraction(0)
        if n is None or measure == "quality":
            return given.value, given.half
        exact, count = self._of_prompts(f"{measure}_points", given, n, 100)
        return exact, Fraction(0) if count is not None else given.half

    def _of_prompts(
        self, field: str, given: Written, n: int, scale: int
    ) -> tuple[Exact, int | None]:
        prompts = given.times(Fraction(n, scale))
        count = prompts.whole()
        if count is not None:
            return Fraction(scale * count, n), count
        if prompts.half < Fraction(1, 2):
            raise self.error(field, f"{self.text(field)} is no count out of {n} prompts")
        return given.value, None  # rounded too far to say which count it was


def read_table(
    path: Path,
    columns: Mapping[str, str] | None = None,
    *,
    quality: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Table:
    """Read a CSV and find its fields.

    Args:
        path: The file.
        columns: By field, the column that holds it; the others are looked for by their names.
        quality: A measure of mechprobe's own matrix that is quality, such as `accuracy`.
        sizes: By measure, the prompts of every row where no column says it.

    Raises:
        TableError: The file cannot be read, a field is unknown, a column is not there, or there is
            nothing to analyse.
    """
    frame = _read(path)
    named = dict(columns or {})
    for given, known, what in ((named, FIELDS, "field"), (sizes or {}, MEASURES, "measure")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TableError(f"{unknown[0]} is no {what}; there are: {', '.join(known)}")
    if quality:
        for part, own in _OWN:
            if f"{quality}_{own}" in frame:
                named.setdefault(f"quality_{part}", f"{quality}_{own}")
        if "quality_rate" not in named and "quality_count" not in named:
            wanted = f"{quality}_count, {quality}_rate or {quality}_value"
            raise TableError(f"{path}: no column {wanted}")
    for name, column in named.items():
        if column not in frame:
            raise TableError(
                f"{path}: no column {column!r} for {name}; there are: {', '.join(frame.columns)}"
            )
    for one in FIELDS:
        found = next((name for name in (one, *_KNOWN_AS.get(one, ())) if name in frame), None)
        if one not in named and found:
            named[one] = found
    for one in ("model", "cell"):
        if one not in named:
            raise TableError(
                f"{path}: no column for {one}; say which with --column {one}=COLUMN (there "
                f"are: {', '.join(frame.columns)})"
            )
    if not any(f"refusal_{part}" in named for part in ("count", "rate", "points")):
        raise TableError(
            f"{path}: no column for refusal; say which with --column refusal_rate=COLUMN, "
            "refusal_count=COLUMN or refusal_points=COLUMN"
        )
    return Table(path, named, dict(sizes or {}), frame)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = parse_csv(read_text(path, TableError))
    except MalformedError as error:
        raise TableError(error.at(path)) from error
    if not table.rows:
        raise TableError(f"{path}: has no rows")
    return pd.DataFrame(table.rows, columns=list(table.columns), index=list(table.lines))
