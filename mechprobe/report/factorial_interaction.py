"""What a temperature factorial says of precision and temperature together: CDI and the GEE."""

from __future__ import annotations

from mechprobe.report import words
from mechprobe.report.drawing import plain_name
from mechprobe.report.factorial_figures import interaction_figure
from mechprobe.report.factorial_rows import cell_name, cut, highest, models_of
from mechprobe.report.section import Row, Section, absent

ALPHA = 0.05


def shown_by_gee(document: Row) -> tuple[list[Row], list[Row]]:
    """Interactions whose GEE is significant after Holm, and all that were tested."""
    tested = [row for row in document["interactions"] if row["gee"]["p_holm"] is not None]
    return [row for row in tested if row["gee"]["p_holm"] <= ALPHA], tested


def shown_by_cdi(document: Row) -> tuple[list[Row], list[Row]]:
    """Interactions whose CDI at the highest temperature excludes 0, and all that have it."""
    top, known, found = highest(document), [], []
    for row in document["interactions"]:
        for point in row["cdi"]:
            if point["temperature"] == top and point["low"] is not None:
                known.append(row)
                if point["low"] > 0 or point["high"] < 0:
                    found.append(row)
    return found, known


def interaction_section(document: Row) -> Section:
    """CDI and the GEE."""
    rows, several = document["interactions"], models_of(document)
    title = "Do precision and temperature act together?"
    if not rows:
        return absent("interaction", title, "no cell stands beside a baseline on its engine")
    found, tested = shown_by_gee(document)
    said = []
    if tested:
        names = [cell_name(row, several) for row in found]
        said.append(
            f"In {len(found)} of {words.count(len(tested), 'tested quantized cell')} temperature "
            "is shown to move the log-odds of an answer otherwise than in the baseline (GEE, Holm "
            "p ≤ 0.05)" + (f": {words.some(names)}." if found else ".")
        )
    apart, known = shown_by_cdi(document)
    if known:
        names = [cell_name(row, several) for row in apart]
        said.append(
            f"CDI at T = {highest(document):g} excludes 0 in {len(apart)} of "
            f"{words.count(len(known), 'quantized cell')}"
            + (f": {words.some(names)}." if apart else ".")
        )
    untested = [row for row in rows if row["gee"]["status"] != "ok"]
    said += [
        f"Not tested: {cell_name(row, several)}, {row['gee']['status']}: {row['gee']['why']}."
        for row in untested[:5]
    ]
    if more := len(untested[5:]):
        said.append(f"Not tested either: {words.count(more, 'more cell')}, see the table.")
    values = [(p["value"], row, p) for row in rows for p in row["cdi"] if p["value"] is not None]
    if values:
        low, high = (f(values, key=lambda v: v[0])[0] for f in (min, max))
        said.append(
            f"CDI lies between {words.signed(100 * low)} and {words.signed(100 * high)} points."
        )
    table = [
        (
            cell_name(row, several), plain_name(row["baseline"], 40), row["gee"]["status"],
            ", ".join(f"{t:g}" for t in row["gee"]["tested"]) or words.NOTHING,
            _log_odds(row["gee"]), words.p_value(row["gee"]["p_holm"]),
            words.plain(row["gee"]["detectable"], 2), _points(row),
        )
        for row in rows
    ]  # fmt: skip
    head = ("cell", "baseline", "GEE", "tested at T", "interaction, log-odds per unit T [95 %]",
            "Holm p", "detectable with 80 % power", "CDI in points, by T")  # fmt: skip
    return Section(
        "interaction",
        title,
        tuple(said),
        (interaction_figure(document),),
        (cut(table, head, "Every quantized cell against the baseline of its engine."),),
        (
            "CDI is a difference of rates, the GEE one of log-odds. A cell that answers nearly "
            "everything at temperature 0 has no room for more: its CDI is negative although its "
            "log-odds may move as its baseline's do.",
            "An interaction that is not shown is not shown to be absent: a smaller one than the "
            "detectable one is found less than four times in five. Intervals of CDI are each of 95 "
            "%, not adjusted for their number.",
        ),
    )


def _log_odds(gee: Row) -> str:
    if gee["coefficient"] is None:
        return words.NOTHING
    return f"{words.signed(gee['coefficient'], 2)} {words.interval(gee['low'], gee['high'], 2)}"


def _points(row: Row) -> str:
    return ", ".join(
        f"{p['temperature']:g}: {words.signed(None if p['value'] is None else 100 * p['value'])}"
        for p in row["cdi"]
    )
