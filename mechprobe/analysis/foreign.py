"""A matrix from elsewhere, analysed as far as its numbers go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.analysis.deltas import Deltas
from mechprobe.analysis.document import document
from mechprobe.analysis.matrix import Matrix
from mechprobe.analysis.regimes import get_preset
from mechprobe.analysis.rows import REFUSAL, Choice, Delta, Key, paired_deltas
from mechprobe.analysis.tables import Line, Table

if TYPE_CHECKING:
    import pandas as pd

UNPAIRED = "no outcomes by prompt: what needs pairs is not measured"
ROUNDED = "rounded too far for exact counts, and no outcomes by prompt"
NOT_GIVEN = "the table does not give it"
SIXTEEN_BITS = ("FP16", "BF16", "F16", "FP32", "F32")
_FIRST, _SECOND, _GIVEN = "first", "second", "table"


def analyse_table(
    table: Table, *, preset: str = "mechprobe", strict: bool = True, quality: str | None = None
) -> dict[str, Any]:
    """Analyse a table of rates, counts or deltas.

    Args:
        table: See `tables.read_table`.
        preset: Name of the thresholds.
        strict: Whether a fall must be beyond its threshold, not at it.
        quality: What to call the measure of quality.

    Returns:
        The document that `analyse` makes; what needs outcomes by prompt is not measured.

    Raises:
        SpecError: The preset is unknown.
        TableError: A number is none, a count does not fit, or a baseline is no row.
    """
    lines = list(table.lines())
    rows = _rows(lines)
    by_key = {(row["model"], row["cell"]): line for row, line in zip(rows, lines, strict=True)}
    there = [m for m in ("refusal", "quality", "second") if _has(table, m)]
    name = quality or "quality"
    choice = Choice(
        get_preset(preset),
        strict,
        name if "quality" in there else None,
        {REFUSAL: _FIRST} | ({name: _GIVEN} if "quality" in there else {}),
        _SECOND if "second" in there else None,
    )
    named = {"refusal": (REFUSAL, _FIRST), "quality": (name, _GIVEN), "second": (REFUSAL, _SECOND)}
    deltas: dict[Key, dict[str, Delta]] = {}
    for row, line in zip(rows, lines, strict=True):
        base = by_key.get((row["model"], row["baseline"]))
        for measure in there:
            if not row["baseline"]:
                line.rate(measure)  # a mistake there is one too
                continue
            what, instrument = named[measure]
            found = _delta(line, base, measure, Delta(what, instrument))
            deltas.setdefault((row["model"], row["cell"], what), {})[instrument] = found
    tested = _tested(deltas)
    return document(Matrix(rows, tested, choice), _numbers(table, rows))


def _has(table: Table, measure: str) -> bool:
    return any(f"{measure}_{part}" in table.columns for part in ("count", "rate", "points"))


def _rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Who each line is, with its baseline found."""
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, str], Line] = {}
    for line in lines:
        name, engine = line.text("cell"), line.text("engine")
        for field in ("model", "cell"):
            if not line.text(field):
                raise line.error(field, "is empty")
        key = f"{name}@{engine}" if engine and "@" not in name else name
        if (line.text("model"), key) in seen:
            raise line.error("cell", f"{key} of {line.text('model')} is there twice")
        seen[line.text("model"), key] = line
        rows.append(
            {
                "model": line.text("model"),
                "family": line.text("family"),
                "cell": key,
                "precision": key.partition("@")[0],
                "engine": key.partition("@")[2],
                "status": "ok",
                "error": "",
            }
        )
    models: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    for mine in models.values():
        names: dict[str, list[dict[str, Any]]] = {}
        for row in mine:
            for name in {row["cell"], row["precision"]}:
                names.setdefault(name, []).append(row)
        for row in mine:
            row["baseline"] = _baseline(row, names, seen[row["model"], row["cell"]])
        held = {row["cell"]: row["baseline"] for row in mine}
        for row in mine:
            if _leads_back(row["cell"], held):
                line = seen[row["model"], row["cell"]]
                raise line.error("baseline", f"a chain of baselines leads back to {row['cell']}")
    return rows


def _leads_back(cell: str, held: Mapping[str, str]) -> bool:
    at = held[cell]
    for _ in held:
        if at == cell:
            return True
        if not at:
            return False
        at = held.get(at, "")
    return False


def _baseline(
    row: Mapping[str, Any], names: Mapping[str, Sequence[Mapping[str, Any]]], line: Line
) -> str:
    """Key of the row that this one is held against; empty for a baseline itself."""
    given = line.text("baseline")
    if "baseline" in line.table.columns:
        if given in ("", row["cell"], row["precision"]):
            return ""
        named = list(names.get(given, ()))
        if not named and not line.text("refusal_points"):
            raise line.error("baseline", f"{given} is no row of {row['model']}")
        if not named:
            return given
    else:
        named = [one for name in SIXTEEN_BITS for one in names.get(name, ())]
        if not named:
            raise line.error(
                "baseline", f"no row of {row['model']} has 16 bits; add a column `baseline`"
            )
    same = [one for one in named if one["engine"] == row["engine"]]
    found = str((same or named)[0]["cell"])
    return "" if found == row["cell"] else found


def _delta(line: Line, base: Line | None, measure: str, empty: Delta) -> Delta:
    """What the table says of one measure of one row; its baseline may be missing there."""
    after, after_count = line.rate(measure)
    before, before_count = base.rate(measure) if base else (None, None)
    n, m = line.size(measure), base.size(measure) if base else None
    lost, gained = line.count(f"{measure}_lost"), line.count(f"{measure}_gained")
    if before is None and n and None not in (after_count, lost, gained):
        before_count, m = (after_count or 0) + (lost or 0) - (gained or 0), n
        before = Fraction(before_count, n)
    kind = "score" if measure == "quality" and after_count is None else "binary"
    empty = replace(empty, kind=kind)
    if after is None or before is None:
        points, half = line.points(measure)
        if points is None:
            return replace(empty, not_measured=NOT_GIVEN)
        step = Fraction(100, n) if n and not half else (half or None)
        said = ROUNDED if half and kind == "binary" else UNPAIRED
        return replace(empty, n=n, points=points, step=step, not_measured=said)
    found = replace(
        empty,
        n=n if n == m else None,
        before=float(before),
        after=float(after),
        before_count=before_count,
        after_count=after_count,
        points=100 * (after - before),
        step=Fraction(100, n) if n else None,
        not_measured=UNPAIRED,
    )
    if lost is None or gained is None or after_count is None or before_count is None or n != m:
        return found
    if gained - lost != after_count - before_count:
        raise line.error(
            f"{measure}_lost",
            f"{lost} lost and {gained} gained do not lead from {before_count} to {after_count}",
        )
    for name, moved, there, what in (
        ("lost", lost, before_count, "positive"),
        ("gained", gained, (n or 0) - before_count, "negative"),
    ):
        if moved > there:
            raise line.error(
                f"{measure}_{name}", f"{moved} {name}, but the baseline has {there} {what} alone"
            )
    return replace(found, lost=lost, gained=gained)


def _tested(deltas: Mapping[Key, Mapping[str, Delta]]) -> dict[Key, dict[str, Delta]]:
    """The same deltas; those with lost and gained prompts are tested, prompts taken as single."""
    found = {key: dict(some) for key, some in deltas.items()}
    paired = [
        (*key, name, one)
        for key, some in deltas.items()
        for name, one in some.items()
        if one.lost is not None
    ]
    if paired:
        for key, some in paired_deltas(_as_deltas(paired)).items():
            found[key] |= some
    return found


def _as_deltas(paired: Sequence[tuple[str, str, str, str, Delta]]) -> Deltas:
    import pandas as pd

    rows = [
        {
            "model": model,
            "cell": cell,
            "measure": measure,
            "instrument": name,
            "kind": "binary",
            "n": one.n,
            "clusters": one.n,
            "unread": 0,
            "before_sum": float(one.before_count or 0),
            "after_sum": float(one.after_count or 0),
            "lost": one.lost,
            "gained": one.gained,
            "mean": ((one.after_count or 0) - (one.before_count or 0)) / (one.n or 1),
            "fallen": float(one.lost or 0),
            "risen": float(one.gained or 0),
            "furthest": 1.0,
            "squares": float((one.lost or 0) + (one.gained or 0)),
        }
        for model, cell, measure, name, one in paired
    ]
    none = np.zeros(0, np.int64)
    return Deltas(
        table=pd.DataFrame(rows),
        line=none,
        block=np.zeros(len(rows), np.int64),
        cluster=none,
        change=np.zeros(0),
        size=none,
        resamples=0,
        seed=0,
    )


def _numbers(table: Table, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table with numbers where its columns hold nothing else, for what the probes said."""
    import pandas as pd

    columns: dict[str, Any] = {
        str(name): pd.to_numeric(column.replace("", None), errors="coerce")
        for name, column in table.frame.items()
    }
    who = ("model", "cell", "precision", "engine", "baseline")
    keys: dict[str, Any] = {name: [row[name] for row in rows] for name in who}
    return pd.DataFrame({**columns, **keys})
