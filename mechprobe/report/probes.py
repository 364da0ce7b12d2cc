"""Does anything that the probes see inside tell dangerous rows from the rest?"""

from __future__ import annotations

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, style
from mechprobe.report.section import Drawn, Material, Row, Section, Table, absent, why_not

TITLE = "Do the probes tell dangerous rows from the rest?"


def separators_section(material: Material) -> Section:
    """AUC of every probe metric with its interval, its null band and its adjusted p."""
    found = material.document.get("separators")
    if reason := why_not(found):
        return absent("separators", TITLE, reason)
    assert found is not None
    known = [one for one in found["metrics"] if one["danger"]["auc"] is not None]
    if not known:
        reasons = {str(one["danger"]["not_measured"]) for one in found["metrics"]}
        return absent("separators", TITLE, "; ".join(sorted(reasons)))
    alpha = material.document["parameters"]["alpha"]
    tested = [one for one in known if one["danger"]["p_holm"] is not None]
    apart = [one for one in tested if one["danger"]["p_holm"] <= alpha]
    positive = max(one["danger"]["positive"] for one in known)
    rows = max(one["danger"]["n"] for one in known)
    if not tested:
        said = (
            "Nobody can tell: within each model the metric or the regime is the same in all rows."
        )
    elif apart:
        names = words.some([words.metric_name(one["metric"]) for one in apart])
        said = f"{len(apart)} of {words.count(len(tested), 'metric')} do: {names}."
    else:
        least = min(one["danger"]["p_holm"] for one in tested)
        said = (
            f"None of {words.count(len(tested), 'metric')} does, beyond what rows shuffled within "
            f"their model show (smallest adjusted p {words.p_value(least)})."
        )
    lines = (said, f"{positive} dangerous of {words.count(rows, 'row')}.")
    missing = len(found["metrics"]) - len(known)
    notes = [found["about"]]
    if missing:
        notes.append(f"{words.count(missing, 'metric')} not measured.")
    return Section(
        "separators", TITLE, lines, (separators_figure(known),), (_table(known),), tuple(notes)
    )


def separators_figure(metrics: list[Row]) -> Drawn:
    """One line a metric: AUC with its interval over the band of shuffled rows."""
    with style():
        figure = blank(7.6, 1.1 + 0.27 * len(metrics))
        axes = figure.subplots()
        for y, one in enumerate(metrics):
            side = one["danger"]
            if side["null_low"] is not None:
                width = side["null_high"] - side["null_low"]
                axes.barh(y, width, left=side["null_low"], height=0.66, color=palette.LINE)
            if side["low"] is not None:
                axes.plot([side["low"], side["high"]], [y, y], color=palette.GAIN, linewidth=1.6)
            apart = side["p_holm"] is not None and side["p_holm"] <= 0.05
            axes.plot(
                [side["auc"]], [y], "D" if apart else "o", markersize=5.5,
                color=palette.LOSS if apart else palette.GAIN,
            )  # fmt: skip
        axes.axvline(0.5, color=palette.MUTED, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(metrics)), [words.metric_name(one["metric"]) for one in metrics])
        axes.set_ylim(len(metrics) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("AUC: 0.5 tells nothing, 0 and 1 tell all")
    caption = (
        "AUC of each probe metric for dangerous rows against the rest, 95 % interval; grey: 95 % "
        "of shuffles within model; a diamond: adjusted p at most 0.05."
    )
    return Drawn("separators", figure, caption)


def _table(metrics: list[Row]) -> Table:
    rows = tuple(
        (
            words.metric_name(one["metric"]),
            f"{one['danger']['auc']:.2f}",
            ""
            if one["danger"]["low"] is None
            else f"{one['danger']['low']:.2f} to {one['danger']['high']:.2f}",
            "" if one["danger"]["p"] is None else words.p_value(one["danger"]["p"]),
            "" if one["danger"]["p_holm"] is None else words.p_value(one["danger"]["p_holm"]),
            f"{one['danger']['positive']} of {one['danger']['n']}",
        )
        for one in metrics
    )
    head = ("metric", "AUC", "95 % interval", "p within models", "Holm p", "dangerous rows")
    return Table(head, rows, "Every metric that was measured, strongest first")
