"""The evidence of single rows: counts, tests, probes, and which prompts changed, by id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechprobe.report import palette, words
from mechprobe.report.known import facts_of, known_of, probes_of, rate_of
from mechprobe.report.section import Material, Row, Table

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS, MOST_IDS = 200, 30
_HEAD = (
    "measure", "read by", "n", "before → after", "lost", "gained", "change in points [95 %]",
    "McNemar p", "Holm p", "within ±{margin}: p", "smallest margin", "detectable fall",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """An interval drawn as a line: places in percent of the width."""

    low: float
    high: float
    at: float
    zero: float
    fall: float


@dataclass(frozen=True, slots=True)
class Changed:
    """Prompts whose answer changed, by id."""

    title: str
    ids: tuple[str, ...]
    more: int


@dataclass(frozen=True, slots=True)
class RowView:
    """A row of the matrix as the page shows it."""

    index: int
    row: Row
    look: palette.Look
    counts: str
    refusal: str
    quality: str
    order: float
    """Refusals lost in points, for sorting; unknown ones last."""
    span: Span | None
    flags: tuple[str, ...]
    said: tuple[str, ...]
    """Why it has the regime it has, in sentences."""
    measures: Table | None
    probes: tuple[tuple[str, str], ...]
    changed: tuple[Changed, ...]
    facts: tuple[tuple[str, str], ...]


def row_views(material: Material) -> list[RowView]:
    """The rows a page shows, worst first: what is of concern, then the rest, at most 200."""
    shown = _shown(material)
    wanted = {(row["model"], row["cell"]) for _, row in shown}
    facts = known_of(material.matrix, wanted)
    outcomes = _outcomes_of(material, wanted)
    scale = _scale(material)
    return [_view(material, index, row, facts, outcomes, scale) for index, row in shown]


def wanted_cells(material: Material) -> list[tuple[str, str]]:
    """Models and cells whose outcomes the page reads: the rows it shows and their baselines."""
    found: dict[tuple[str, str], None] = {}
    for _, row in _shown(material):
        for cell in (row["cell"], row["baseline"]):
            if cell:
                found[row["model"], cell] = None
    return list(found)


def _shown(material: Material) -> list[tuple[int, Row]]:
    order = sorted(enumerate(material.rows), key=lambda pair: _concern(material, pair[1]))
    return order[:MOST_ROWS]


def _concern(material: Material, row: Row) -> tuple[int, float]:
    delta = material.delta(row, "refusal")
    unnamed = material.unnamed_loss(row)
    concern = (palette.UNNAMED_LOSS if unnamed else palette.look(row["regime"])).concern
    return concern, delta["points"] if delta else 0.0


def _scale(material: Material) -> tuple[float, float]:
    """Both ends of the line that intervals of refusal changes are drawn on."""
    deltas = [d for row in material.rows if (d := material.delta(row, "refusal"))]
    low = min([-20.0, *(d["points"] if d["low"] is None else d["low"] for d in deltas)])
    high = max([10.0, *(d["points"] if d["high"] is None else d["high"] for d in deltas)])
    return low, high


def _view(
    material: Material,
    index: int,
    row: Row,
    facts: Mapping[tuple[str, str], Mapping[str, Any]],
    outcomes: Mapping[tuple[str, str], pd.Series[float]],
    scale: tuple[float, float],
) -> RowView:
    refusal, quality = material.delta(row, "refusal"), material.delta(row, "quality")
    known = facts.get((row["model"], row["cell"]), {})
    base = not row["baseline"]
    return RowView(
        index=index,
        row=row,
        look=palette.UNNAMED_LOSS if material.unnamed_loss(row) else palette.look(row["regime"]),
        counts=rate_of(known) if base else words.moved(refusal) if refusal else words.NOTHING,
        refusal="" if base else _points(refusal),
        quality="" if base else _points(quality),
        order=refusal["points"] if refusal else 999.0,
        span=_span(material, refusal, scale) if refusal else None,
        flags=_flags(material, row),
        said=_said(material, row),
        measures=_measures(material, row),
        probes=probes_of(known, row.get("unseen", ())),
        changed=_changed(row, outcomes),
        facts=facts_of(known),
    )


def _points(delta: Row | None) -> str:
    return "unknown" if delta is None else words.signed(delta["points"])


def _span(material: Material, delta: Row, scale: tuple[float, float]) -> Span:
    bottom, top = scale

    def place(points: float) -> float:
        return round(100 * (points - bottom) / (top - bottom), 1)

    at = delta["points"]
    low, high = (at if delta[end] is None else delta[end] for end in ("low", "high"))
    fall = material.document["preset"]["thresholds"]["fall"]
    return Span(place(low), place(high), place(at), place(0.0), place(fall))


def _flags(material: Material, row: Row) -> tuple[str, ...]:
    flags = {
        palette.UNNAMED_LOSS.label: material.unnamed_loss(row),
        "failed": row["status"] != "ok",
        "boundary": row["boundary"],
        "other engine": row["engine_differs"],
        "instruments differ": row["measurement_divergence"],
        "second disagrees": bool(row["second"] and row["second"]["changes"]),
    }
    return tuple(name for name, raised in flags.items() if raised)


def _said(material: Material, row: Row) -> tuple[str, ...]:
    if not row["baseline"]:
        return ("A baseline: other rows are held against it.",)
    look = palette.look(row["regime"])
    said = [f"{look.label.capitalize()}: {look.meaning}."]
    if material.unnamed_loss(row):
        known = "fell too" if material.delta(row, "quality") else "is not known"
        said.insert(0, f"Refusals were lost, beyond the threshold; quality {known}.")
    said += [
        f"{words.measure_name(role).capitalize()}: {delta['not_measured']}."
        for role in ("refusal", "quality")
        if (delta := row["deltas"].get(material.measure(role) or ""))
        and delta["points"] is None
        and delta["not_measured"]
    ]
    if frequency := row["regime_frequency"]:
        parts = sorted(frequency.items(), key=lambda item: (-item[1], item[0]))
        resamples = material.document["parameters"]["resamples"]
        shares = ", ".join(
            f"{palette.look(name).label} {words.percent(share, 0)}"
            for name, share in parts
            if share
        )
        said.append(f"Drawing the prompts anew {resamples:,} times: {shares}.")
    if row["boundary"]:
        of = words.listed([str(name) for name in row["boundary_of"]] or ["refusal"])
        said.append(f"At a boundary: one prompt more or less ({of}) would change the regime.")
        strict, loose = row["regime_strict"], row["regime_non_strict"]
        if strict != loose:
            said.append(
                f"With the threshold excluded it is “{palette.look(strict).label}”, with it "
                f"included “{palette.look(loose).label}”."
            )
    if second := row["second"]:
        verdict = "another regime" if second["changes"] else "the same regime"
        said.append(
            f"Read by “{second['instrument']}”: {words.change(second['delta'])} points, "
            f"{palette.look(second['regime']).label} ({verdict})."
        )
    if row["engine_differs"]:
        said.append(
            f"Its baseline {row['baseline']} ran on another engine: part of the change may not be "
            "quantization."
        )
    if row["rtsi"] and row["rtsi"]["score"] is not None:
        said.append(f"RTSI {row['rtsi']['score']:.3f}, {str(row['rtsi']['band']).lower()}.")
    return tuple(said)


def _measures(material: Material, row: Row) -> Table | None:
    if not row["deltas"]:
        return None
    margin = material.document["parameters"]["equivalence_points"]
    head = tuple(name.format(margin=margin) for name in _HEAD)
    return Table(head, tuple(_line(delta) for delta in row["deltas"].values()))


def _line(delta: Row) -> tuple[str, ...]:
    name, instrument = words.measure_name(delta["measure"]), str(delta["instrument"])
    if delta["points"] is None:
        why = delta["not_measured"] or ""
        return (name, instrument, "", f"{words.NOTHING}: {why}".rstrip(": "), *[""] * 8)
    equivalent = " (shown)" if delta["equivalent"] else ""
    margin, fall = delta["smallest_margin"], delta["mde_points"]
    return (
        name,
        instrument,
        "" if delta["n"] is None else str(delta["n"]),
        words.moved(delta),
        *("" if delta[side] is None else str(delta[side]) for side in ("lost", "gained")),
        words.change(delta),
        *(words.p_value(p) if p is not None else "" for p in _ps(delta)),
        "" if delta["tost_p"] is None else f"{words.p_value(delta['tost_p'])}{equivalent}",
        "" if margin is None else f"±{margin:.1f}",
        "" if fall is None else words.plain(abs(fall)),
    )


def _ps(delta: Row) -> tuple[float | None, float | None]:
    return delta["mcnemar_p"], delta["mcnemar_p_holm"]


def _outcomes_of(
    material: Material, wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], pd.Series[float]]:
    """Outcomes of the rows' refusals and of their baselines', by prompt id."""
    if material.outcomes is None or material.outcomes.empty:
        return {}
    instrument = material.document["preset"]["instruments"]["refusal"]
    frame = material.outcomes
    mine = (frame["measure"] == material.measure("refusal")) & (frame["instrument"] == instrument)
    mine &= frame["model"].isin({model for model, _ in wanted})
    groups = frame.loc[mine].groupby(["model", "cell"], sort=False, observed=True)
    return {
        (str(model), str(cell)): group.set_index("prompt")["value"]
        for (model, cell), group in groups
    }


def _changed(row: Row, outcomes: Mapping[tuple[str, str], pd.Series[float]]) -> tuple[Changed, ...]:
    after = outcomes.get((row["model"], row["cell"]))
    before = outcomes.get((row["model"], row["baseline"]))
    if not row["baseline"] or after is None or before is None:
        return ()
    before = before.reindex(after.index)
    found = []
    for title, was, now in (("refusals lost", 1, 0), ("refusals gained", 0, 1)):
        ids = [str(name) for name in after.index[(before == was) & (after == now)]]
        if ids:
            found.append(Changed(title, tuple(ids[:MOST_IDS]), max(0, len(ids) - MOST_IDS)))
    return tuple(found)


def shown_indices(views: Sequence[RowView]) -> set[int]:
    """Rows of the document that the page shows."""
    return {view.index for view in views}
