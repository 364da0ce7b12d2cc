"""Rows of a matrix beside their deltas and regimes, ready for the document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.analysis.deltas import KEYS, Deltas
from mechprobe.analysis.effects import effects
from mechprobe.analysis.paired import ALPHA
from mechprobe.analysis.regimes import (
    BASELINE,
    REGIMES,
    Exact,
    Preset,
    boundaries,
    classify,
    exact_points,
    frequencies,
)

if TYPE_CHECKING:
    import pandas as pd

REFUSAL = "refusal"
"""The measure of refused harmful prompts."""
UNREADABLE = "no prompt could be read in both"
TOO_FEW = "all prompts are one cluster: no interval, no test"
Key = tuple[str, str, str]
"""Model, cell and measure."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One measure of one cell against its baseline; docs/analysis.md says what each field is."""

    measure: str
    instrument: str
    kind: str = "binary"
    n: int | None = None
    clusters: int | None = None
    unread: int | None = None
    before: float | None = None
    after: float | None = None
    before_count: int | None = None
    after_count: int | None = None
    lost: int | None = None
    gained: int | None = None
    points: Exact = None
    """Exactly."""
    low: float | None = None
    high: float | None = None
    mcnemar_p: float | None = None
    mcnemar_p_holm: float | None = None
    tost_p: float | None = None
    equivalent: bool | None = None
    smallest_margin: float | None = None
    mde_points: float | None = None
    not_measured: str | None = None
    step: Exact = None
    """Points that one prompt can move it by; None where that is not known."""
    line: int | None = None
    """Of the paired outcomes, where there are any."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: six significant digits, no NaN."""
        return {name: plain(getattr(self, name)) for name in _SHOWN}


_SHOWN = tuple(f.name for f in fields(Delta) if f.name not in ("step", "line"))


def plain(value: Any) -> Any:
    """A number for JSON: floats to six significant digits, None where there is none."""
    if isinstance(value, Fraction):
        value = float(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def paired_deltas(deltas: Deltas) -> dict[Key, dict[str, Delta]]:
    """Every delta of a table, by model, cell and measure, then by instrument."""
    found: dict[Key, dict[str, Delta]] = {}
    for line, row in enumerate(effects(deltas).to_dict("records")):
        key = (row["model"], row["cell"], row["measure"])
        found.setdefault(key, {})[row["instrument"]] = _delta(row, line)
    return found


def _delta(row: Mapping[Any, Any], line: int) -> Delta:
    n, binary = int(row["n"]), row["kind"] == "binary"
    named = (row["measure"], row["instrument"], row["kind"])
    if not n:
        unread = int(row["unread"])
        return Delta(*named, n=0, unread=unread, not_measured=UNREADABLE, line=line)

    def points(name: str) -> float | None:
        return None if math.isnan(row[name]) else 100 * row[name]

    def number(name: str) -> float | None:
        return None if math.isnan(row[name]) else row[name]

    tost = number("tost_p")
    return Delta(
        *named,
        n=n,
        clusters=int(row["clusters"]),
        unread=int(row["unread"]),
        before=row["before_sum"] / n,
        after=row["after_sum"] / n,
        before_count=int(row["before_sum"]) if binary else None,
        after_count=int(row["after_sum"]) if binary else None,
        lost=int(row["lost"]),
        gained=int(row["gained"]),
        points=exact_points(row["after_sum"] - row["before_sum"], n, binary=binary),
        low=points("low"),
        high=points("high"),
        mcnemar_p=number("p"),
        mcnemar_p_holm=number("p_holm"),
        tost_p=tost,
        equivalent=None if tost is None else bool(tost <= ALPHA),
        smallest_margin=points("margin"),
        mde_points=points("mde"),
        not_measured=TOO_FEW if tost is None else None,
        step=Fraction(100, n),
        line=line,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What regimes are made of."""

    preset: Preset
    strict: bool
    quality: str | None
    """The measure that is quality; None where nobody named one."""
    instruments: Mapping[str, str]
    """By measure, the instrument that counts."""
    second: str | None
    """Another instrument of refusal."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one row."""

    regime: str
    strict: str
    non_strict: str
    boundary: tuple[str, ...]


def verdicts(
    has_baseline: Sequence[bool],
    quality: Sequence[Delta | None],
    refusal: Sequence[Delta | None],
    choice: Choice,
) -> list[Verdict]:
    """The regime of each row under both readings of a threshold, and what it hangs on."""
    q, r = ([one.points if one else None for one in some] for some in (quality, refusal))
    dq, dr = ([one.step if one else None for one in some] for some in (quality, refusal))
    by_reading = [classify(q, r, choice.preset, strict=strict) for strict in (True, False)]
    hang = boundaries(q, r, dq, dr, choice.preset, strict=choice.strict)
    found = []
    for i, compared in enumerate(has_baseline):
        if compared:
            strict, loose = by_reading[0][i], by_reading[1][i]
            found.append(Verdict(strict if choice.strict else loose, strict, loose, hang[i]))
        else:
            found.append(Verdict(BASELINE, BASELINE, BASELINE, ()))
    return found


def row_frequencies(
    deltas: Deltas,
    quality: Sequence[Delta | None],
    refusal: Sequence[Delta | None],
    choice: Choice,
) -> list[dict[str, float] | None]:
    """How often each row is in each regime, over the bootstrap; None without both deltas."""
    known = [
        (i, q.line, r.line)
        for i, (q, r) in enumerate(zip(quality, refusal, strict=True))
        if q and r and q.n and r.n and q.line is not None and r.line is not None
    ]
    found: list[dict[str, float] | None] = [None] * len(quality)
    if known:
        rows, q_lines, r_lines = (np.array(column) for column in zip(*known, strict=True))
        shares = frequencies(deltas, q_lines, r_lines, choice.preset, strict=choice.strict)
        for row, share in zip(rows.tolist(), shares.tolist(), strict=True):
            some = {name: x for name, x in zip(REGIMES, share, strict=True) if x}
            found[row] = dict(sorted(some.items(), key=lambda one: -one[1]))
    return found


def primary_instruments(
    outcomes: pd.DataFrame, instrument: str | None
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """By measure, the instrument that counts, and all there are.

    The one that is asked for where a measure has it; else the first to appear.
    """
    there: dict[str, list[str]] = {}
    for measure, name in outcomes[list(KEYS[2:])].drop_duplicates().itertuples(index=False):
        there.setdefault(str(measure), []).append(str(name))
    chosen = {
        measure: instrument if instrument in names else names[0]
        for measure, names in there.items()
        if names
    }
    return {m: str(name) for m, name in chosen.items()}, there
