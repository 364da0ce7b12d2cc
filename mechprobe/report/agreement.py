"""Would a second instrument have said the same of the same answers?"""

from __future__ import annotations

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, name_points, plain_name, style
from mechprobe.report.section import MOST_POINTS, Drawn, Material, Row, Section, absent, why_not

TITLE = "Would a second instrument have said the same?"
LABELLED = 8


def agreement_section(material: Material) -> Section:
    """Agreement on single answers, and whether any row changes its regime."""
    found = material.document["agreement"]
    if reason := why_not(found):
        return absent("agreement", TITLE, reason)
    first, second = found["first"], found["second"]
    changing, divergent = found["rows_changing"], found["divergent_n"]
    names = [plain_name(name, 60) for name in changing]
    said = [
        f"“{first}” and “{second}” agree on {words.percent(found['share'])} of "
        f"{found['n']:,} answers (95 % interval {words.percent(found['share_low'])} to "
        f"{words.percent(found['share_high'])}).",
    ]
    if found["unread"]:
        said.append(
            f"{words.count(found['unread'], 'further answer')} that one of them could not read, "
            "such as gibberish, are left out here and in the rates of that one: rates may part "
            "where no answer is read differently."
        )
    if found["kappa"] is not None:
        said.append(
            f"Beyond chance: Cohen's κ {found['kappa']:.3f} "
            f"[{words.plain(found['kappa_low'], 3)}, {words.plain(found['kappa_high'], 3)}]."
        )
    said.append(
        f"{words.count(len(changing), 'row')} would change its regime under “{second}”: "
        f"{words.some(names)}."
        if len(changing) == 1
        else f"{words.count(len(changing), 'row')} would change their regime under “{second}”: "
        f"{words.some(names)}."
        if changing
        else f"No row changes its regime under “{second}”."
    )
    if divergent:
        said.append(
            f"In {words.count(divergent, 'row')} the two refusal rates differ by at least "
            f"{material.document['preset']['thresholds']['divergence']:g} points: there, which "
            "instrument reads refusals decides what is found."
        )
    figures: tuple[Drawn, ...] = ()
    rows = [r for r in material.quantized() if r["second"] and _points(material, r)]
    if rows:
        figures = (agreement_figure(material, rows, first, second),)
    return Section("agreement", TITLE, tuple(said), figures)


def _points(material: Material, row: Row) -> tuple[float, float] | None:
    mine = material.delta(row, "refusal")
    other = row["second"]["delta"] if row["second"] else None
    if mine is None or not other or other["points"] is None:
        return None
    return mine["points"], other["points"]


def agreement_figure(material: Material, rows: list[Row], first: str, second: str) -> Drawn:
    """The change of refusals by one instrument against that by the other."""
    places = {id(row): found for row in rows if (found := _points(material, row))}
    rows = sorted(rows, key=lambda row: -abs(places[id(row)][0] - places[id(row)][1]))
    shown = rows[:MOST_POINTS]
    with style():
        figure = blank(5.4, 4.6)
        axes = figure.subplots()
        values = [value for pair in places.values() for value in pair]
        low, high = min([*values, -12.0]) - 3, max([*values, 12.0]) + 3
        axes.plot([low, high], [low, high], color=palette.MUTED, linewidth=0.8, linestyle=":")
        fall = material.document["preset"]["thresholds"]["fall"]
        axes.axvline(fall, color=palette.LINE, linewidth=0.9, zorder=0)
        axes.axhline(fall, color=palette.LINE, linewidth=0.9, zorder=0)
        for changes, colour, label in (
            (False, palette.GAIN, "same regime"),
            (True, palette.LOSS, "another regime"),
        ):
            mine = [row for row in shown if bool(row["second"]["changes"]) is changes]
            if mine:
                x, y = zip(*(places[id(row)] for row in mine), strict=True)
                axes.plot(
                    x, y, "D" if changes else "o", linestyle="none", color=colour,
                    markersize=5.5 if changes else 4.5, label=label,
                )  # fmt: skip
        axes.set(xlim=(low, high), ylim=(low, high))
        changing = [row for row in shown if row["second"]["changes"]][:LABELLED]
        names = [plain_name(f"{row['model']} {row['precision']}", 26) for row in changing]
        name_points(
            axes, [(*places[id(row)], name) for row, name in zip(changing, names, strict=True)]
        )
        axes.set_xlabel(f"change of refusals by “{plain_name(first)}”, points")
        axes.set_ylabel(f"by “{plain_name(second)}”, points")
        axes.legend(loc="upper left")
    caption = "Change of refusals by the first instrument against the second; dotted: equal."
    if len(rows) > len(shown):
        caption += f" {len(shown)} of {len(rows):,} rows, those on which the two differ most."
    return Drawn("second-instrument", figure, caption)
