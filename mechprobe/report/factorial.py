"""The page of a temperature factorial: one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechprobe.report import words
from mechprobe.report.factorial_sections import ALPHA, factorial_sections, harmful, models_of
from mechprobe.report.templating import Report, asset, drawn_files, template

if TYPE_CHECKING:
    from mechprobe.report.section import Row

MOST_MISSING = 20


def factorial_report(document: Mapping[str, Any]) -> Report:
    """Draw and write everything that factorial.json holds; the same document, the same bytes."""
    from markupsafe import Markup

    parts = factorial_sections(document)
    figures, svg = drawn_files([drawn for part in parts for drawn in part.figures])
    missing = document["not_measured"]
    html = template("factorial.html.jinja").render(
        name=document["name"],
        verdict=verdict(document),
        tiles=tiles(document),
        missing=missing[:MOST_MISSING],
        more_missing=max(0, len(missing) - MOST_MISSING),
        errors=document["errors"],
        sections=parts,
        svg=svg,
        css=Markup(asset("report.css")),
    )
    return Report(html, figures)


def verdict(document: Row) -> str:
    """What was found, in one line."""
    if not document["rates"]:
        return "No cell could be measured."
    base = [row for row in harmful(document) if not row["baseline"]]
    moved = _largest(base)
    tested = [r for r in document["interactions"] if r["gee"]["p_holm"] is not None]
    together = sum(row["gee"]["p_holm"] <= ALPHA for row in tested)
    said = "No unquantized cell was measured at two temperatures."
    if moved is not None:
        top = max(document["design"]["temperatures"])
        said = (
            f"Temperature {top:g} alone changes the share of harmful prompts that are answered by "
            f"{moved} points."
        )
    if not tested:
        return said
    cells = words.count(len(tested), "quantized cell")
    return f"{said} On {together} of {cells} it acts otherwise."


def _largest(rows: list[Row]) -> str | None:
    """The largest change of ASR from temperature 0 to the highest, in points with its sign."""
    moves = []
    for key in dict.fromkeys((row["model"], row["cell"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["cell"]) == key]
        first, last = mine[0]["asr"], mine[-1]["asr"]
        if first is not None and last is not None:
            moves.append(last - first)
    return words.signed(100 * max(moves, key=abs)) if moves else None


def tiles(document: Row) -> list[tuple[str, str, str]]:
    """Numbers at the top: name, value, what it is of."""
    design = document["design"]
    rows = harmful(document)
    warm = [r for r in rows if r["temperature"] > 0 and r["dfr"] is not None]
    found = [
        (
            "design",
            words.count(len(design["cells"]), "cell"),
            f"{words.count(models_of(document), 'model')}, "
            f"{words.count(len(design['temperatures']), 'temperature')}, "
            f"{words.count(len(design['judges']), 'judge')}",
        ),
        ("answers", f"{document['ensemble']['answers']:,}", "each read by every judge"),
    ]
    if warm:
        top = max(warm, key=lambda row: row["dfr"])
        found.append(
            (
                "most prompts waver",
                words.percent(top["dfr"]),
                f"{top['cell']} at temperature {top['temperature']:g}, {top['k']} samples",
            )
        )
    agreed = document["ensemble"]["agreement"]
    if agreed and agreed["fleiss_kappa"] is not None:
        kappa = words.plain(agreed["fleiss_kappa"], 2)
        found.append(("judges agree", f"kappa {kappa}", "Fleiss, without unclear answers"))
    return found
