"""RTSI's rows from files: a CSV table of feature deltas, one of regimes, an analysis document.

Tables join on (model, cell), which are the published `base_model` and `quant` unless other columns
are named. Each problem names the file, its line and the column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.templates import (
    BOTH,
    DELTAS,
    FEATURES,
    GAINED,
    LOST,
    NEITHER,
    TEMPLATE,
)
from mechprobe.errors import TableError
from mechprobe.textfiles import MalformedError, parse_csv, read_json, read_text

if TYPE_CHECKING:
    import pandas as pd

ROLES: dict[str, str] = {
    "model": "base_model",
    "family": "family",
    "cell": "quant",
    "refusal_rate": "refusal_rate",
    "refusal_delta": "refusal_rate_delta",
    **{name: f"{name}_delta" for name in FEATURES},
    "score": "rtsi_score",
}
"""What a table of deltas holds, and the published name of its column."""
REGIME_ROLES: dict[str, str] = {"model": "base_model", "cell": "quant", "regime": "regime"}
_OPTIONAL = {"family", "refusal_rate", "score"}
_SHARES = {"refusal_rate": (0.0, 1.0), "refusal_delta": (-1.0, 1.0)}
_TEXT = {"model", "family", "cell", "regime"}
_Line = tuple[int, dict[str, Any]]


def read_deltas(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table of feature deltas, as `drift` returns rows, with `published` where it has scores.

    Args:
        path: CSV with a header, one row per checkpoint that is no baseline. Rates are shares in
            [0, 1], their deltas in [-1, 1], cell minus baseline.
        columns: Other names of columns by role, see `ROLES`. `family`, `refusal_rate` and `score`
            may be absent; without rates every row counts as having refusals on both sides.

    Raises:
        TableError: The file cannot be read, a column is missing, a field is no number, or two
            rows are of one cell.
    """
    import pandas as pd

    lines = _read(path, ROLES, columns or {}, _OPTIONAL)
    _unique(path, lines)
    records = []
    for _, row in lines:
        record = {
            "model": row["model"],
            "family": row.get("family", ""),
            "cell": row["cell"],
            "baseline": "",
            "refusal_delta": row["refusal_delta"],
            **{delta: row[name] for name, delta in zip(FEATURES, DELTAS, strict=True)},
            TEMPLATE: _template(row),
        }
        records.append(record | ({"published": row["score"]} if "score" in row else {}))
    return pd.DataFrame(records)


def read_regimes(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table of regimes: `model, cell, regime`.

    Raises:
        TableError: As for `read_deltas`.
    """
    import pandas as pd

    lines = _read(path, REGIME_ROLES, columns or {}, set())
    _unique(path, lines)
    return pd.DataFrame([row for _, row in lines])


def read_rows(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Rows to fit on: of an `analysis.json`, else of a table.

    Raises:
        TableError: As for `read_deltas` and `read_document`.
    """
    return read_document(path) if path.suffix == ".json" else read_deltas(path, columns)


def read_document(path: Path) -> pd.DataFrame:
    """The rows of an `analysis.json`, as `drift` returns them.

    Raises:
        TableError: The file is no such document, or RTSI was not measured there.
    """
    import pandas as pd

    found = read_json(path, TableError)
    section = found.get("rtsi") if isinstance(found, dict) else None
    if not isinstance(section, dict):
        raise TableError(f"{path}: no field 'rtsi'; give an analysis.json or a CSV table")
    if "not_measured" in section:
        raise TableError(f"{path}: RTSI was not measured there: {section['not_measured']}")
    columns = ["model", "family", "cell", "baseline", "refusal_delta", *DELTAS, TEMPLATE]
    given = section.get("rows")
    if not isinstance(given, list) or not given:
        raise TableError(f"{path}, field 'rtsi.rows': no list of rows")
    for i, row in enumerate(given):
        _check_row(row, columns, f"{path}, field 'rtsi.rows[{i}]'")
    return pd.DataFrame(given)[columns]


def _check_row(row: Any, columns: Sequence[str], where: str) -> None:
    if not isinstance(row, dict):
        raise TableError(f"{where}: no row with fields")
    for name in columns:
        if name not in row:
            raise TableError(f"{where}: no {name!r}")
        value = row[name]
        if name in ("refusal_delta", *DELTAS):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value)):
                raise TableError(f"{where}, field {name!r}: {value!r} is no number")
        elif not isinstance(value, str):
            raise TableError(f"{where}, field {name!r}: {value!r} is no text")


def _template(row: Mapping[str, Any]) -> str:
    """Which side has refusals; a rate is a count over n, so a difference of 1e-9 is rounding."""
    if "refusal_rate" not in row:
        return BOTH
    now = row["refusal_rate"] > 1e-9
    before = row["refusal_rate"] - row["refusal_delta"] > 1e-9
    if now:
        return BOTH if before else GAINED
    return LOST if before else NEITHER


def _read(
    path: Path, roles: Mapping[str, str], renamed: Mapping[str, str], optional: set[str]
) -> list[_Line]:
    for role in renamed:
        if role not in roles:
            raise TableError(f"{role!r} is no column's role; there are {', '.join(roles)}")
    names = {**roles, **renamed}
    try:
        table = parse_csv(read_text(path, TableError), short=True)
    except MalformedError as error:
        raise TableError(error.at(path)) from error
    there = table.columns
    for role, name in names.items():
        if name not in there and (role not in optional or role in renamed):
            raise TableError(
                f"{path}, line 1: no column {name!r} ({role}); there are {', '.join(there)}"
            )
    wanted = {role: name for role, name in names.items() if name in there}
    lines: list[_Line] = []
    for number, line in zip(table.lines, table.rows, strict=True):
        fields = {
            role: _field(path, number, role, name, line[name]) for role, name in wanted.items()
        }
        lines.append((number, fields))
    if not lines:
        raise TableError(f"{path}: no row below the header")
    return lines


def _field(path: Path, number: int, role: str, name: str, given: str) -> str | float:
    where = f"{path}, line {number}, column {name!r}"
    text = given.strip()
    if role in _TEXT:
        if not text and role != "family":
            raise TableError(f"{where}: empty")
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise TableError(f"{where}: {text!r} is no number") from error
    if not math.isfinite(value):
        raise TableError(f"{where}: {text!r} is not finite; leave the row out")
    least, most = _SHARES.get(role, (-math.inf, math.inf))
    if not least <= value <= most:
        raise TableError(f"{where}: {text} lies outside [{least:g}, {most:g}]; give shares")
    return value


def _unique(path: Path, lines: list[_Line]) -> None:
    first: dict[tuple[str, str], int] = {}
    for number, row in lines:
        key = row["model"], row["cell"]
        if key in first:
            raise TableError(
                f"{path}, line {number}: {key[0]}/{key[1]} stands in line {first[key]} already"
            )
        first[key] = number
