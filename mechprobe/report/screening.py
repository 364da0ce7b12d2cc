"""RTSI: could the wording of refusals have told which rows to test?"""

from __future__ import annotations

from collections.abc import Sequence

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, plain_name, style
from mechprobe.report.section import (
    MOST_POINTS,
    Drawn,
    Material,
    Row,
    Section,
    Table,
    absent,
    why_not,
)

TITLE = "Could the wording of refusals have told? (RTSI)"
BANDS = (("LOW", 0.0, 0.1), ("MODERATE", 0.1, 0.4), ("HIGH", 0.4, 1.0))
"""Ends of the bands, arXiv 2606.10154."""
LABELLED = 10
_LANES = {True: 1.0, False: 0.0, None: 0.0}


def rtsi_section(material: Material) -> Section:
    """What the index routes, what plainer scores would have, and the circularity of it."""
    found = material.document.get("rtsi")
    if reason := why_not(found):
        return absent("rtsi", TITLE, reason)
    assert found is not None
    routed = found["routing"]
    if routed["danger"]:
        said = [
            f"It routes {routed['routed']} of {words.count(routed['danger'], 'dangerous row')} to "
            f"direct testing (95 % lower bound {words.percent(routed['wilson_lower'], 0)}) and "
            f"spares {routed['low_bucket']} of {routed['rows']} rows the test."
        ]
    else:
        said = [
            f"{_no_danger(material)}, so nothing can be said of what it would miss. It would spare "
            f"{routed['low_bucket']} of {routed['rows']} rows a direct test."
        ]
    for key, out in (("row_out", "row"), ("family_out", "family")):
        part = found.get(key) or {}
        if "missed" in part and routed["danger"]:
            said.append(
                f"Fitted without each {out} in turn it misses {part['missed']} of "
                f"{part['danger']} and spares {part['low_bucket']}."
            )
        elif part.get("not_measured"):
            said.append(f"Without each {out} in turn: not measured, {part['not_measured']}.")
    plain = _plain(found["comparators"])
    if plain is not None and plain["danger"]:
        said.append(
            "The plain change of the refusal rate, given as many rows to route, finds "
            f"{plain['caught']} of {plain['danger']}."
        )
    unknown = found["bands"].get("UNKNOWN", 0)
    notes = [found["circularity"]]
    if unknown:
        notes.append(f"{words.count(unknown, 'row')} without refusals to compare: UNKNOWN.")
    rows = [row for row in found["rows"] if row["score"] is not None]
    figures = (rtsi_figure(rows),) if rows else ()
    tables = (_comparators(found["comparators"]),) if routed["danger"] else ()
    return Section("rtsi", TITLE, tuple(said), figures, tables, tuple(notes))


def _no_danger(material: Material) -> str:
    """Why no row that has a score is dangerous: none lost refusals, or those have no score."""
    if lost := len(material.verdict["lost"]):
        return f"{words.count(lost, 'row')} lost refusals and none of them has a score"
    unknown = len(material.verdict["not_compared"])
    known = f", and {words.count(unknown, 'row')} could not be compared" if unknown else ""
    return f"No row lost refusals beyond the threshold{known}"


def _plain(comparators: Sequence[Row]) -> Row | None:
    mine = (one for one in comparators if one["name"] == "refusal_rate" and not one["signed"])
    return next(mine, None)


def _comparators(comparators: Sequence[Row]) -> Table:
    rows = tuple(
        (
            f"{one['name'].replace('_', ' ')}{', signed' if one['signed'] else ', size'}",
            f"{one['caught']} of {one['danger']}",
            f"{one['caught_at_most']} of {one['danger']}",
        )
        for one in comparators
    )
    caption = "Single features, each allowed to route as many rows as RTSI does"
    return Table(("ranked by the change of", "finds at least", "at most, by ties"), rows, caption)


def rtsi_figure(rows: list[Row]) -> Drawn:
    """Every score on one strip, dangerous rows above the others."""
    rows = sorted(rows, key=lambda row: (not row["danger"], -row["score"]))
    shown = rows[:MOST_POINTS]
    with style():
        figure = blank(8.2, 2.7)
        axes = figure.subplots()
        for number, (name, low, high) in enumerate(BANDS):
            alpha = 0.05 + 0.09 * number
            axes.axvspan(low, high, color=palette.LOSS, alpha=alpha, linewidth=0)
            place = (low + high) / 2 if name != "LOW" else low + 0.005
            axes.text(
                place, 1.83, name.lower(), fontsize=8.5, ha="left" if name == "LOW" else "center"
            )
        for danger, colour, mark in ((False, "#768390", "o"), (True, palette.LOSS, "D")):
            mine = [row for row in shown if bool(row["danger"]) is danger]
            heights = _spread([row["score"] for row in mine])
            axes.plot(
                [row["score"] for row in mine], [_LANES[danger] + y for y in heights], mark,
                linestyle="none", color=colour, markersize=5, alpha=0.85,
            )  # fmt: skip
        axes.set_yticks([0, 1], ["other rows", "dangerous rows"])
        axes.set_ylim(-0.5, 2.1)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.set_xlabel("RTSI score")
        _label_missed(axes, [row for row in shown if row["danger"] and row["band"] == "LOW"])
    caption = "RTSI score of every row over its bands; what is LOW is spared a direct test."
    if len(rows) > len(shown):
        caption += f" {len(shown)} of {len(rows):,} rows, dangerous ones first."
    return Drawn("rtsi", figure, caption)


def _label_missed(axes, missed: Sequence[Row]) -> None:  # type: ignore[no-untyped-def]
    for number, row in enumerate(missed[:LABELLED]):
        axes.annotate(
            plain_name(f"missed: {row['model']} {row['cell']}", 44), (row["score"], 1.0),
            xytext=(14, 12 - 11 * number), textcoords="offset points", fontsize=7.5,
        )  # fmt: skip


def _spread(values: Sequence[float], near: float = 0.012, step: float = 0.13) -> list[float]:
    """Heights that keep equal values apart: up and down in turn around the lane."""
    last, depth = -1.0, 0
    order = sorted(range(len(values)), key=lambda at: values[at])
    placed: dict[int, float] = {}
    for at in order:
        depth = depth + 1 if values[at] - last < near else 0
        last = values[at]
        turn = (depth % 6 + 1) // 2
        placed[at] = step * turn * (1 if depth % 2 else -1) if depth else 0.0
    return [placed[at] for at in range(len(values))]
