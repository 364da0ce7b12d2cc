"""The page of a temperature factorial: one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechprobe.report import words
from mechprobe.report.factorial_interaction import shown_by_cdi, shown_by_gee
from mechprobe.report.factorial_rows import (
    both_ends,
    cell_name,
    checked,
    harmful,
    highest,
    models_of,
)
from mechprobe.report.factorial_sections import NOBODY_TELLS, factorial_sections, most_wavering
from mechprobe.report.templating import Report, asset, drawn_files, template

if TYPE_CHECKING:
    from mechprobe.report.section import Row

MOST_MISSING = 20
MUCH_UNCLEAR = 0.1
"""Share of a cell's answers from which on the headline says that they are in no rate."""


def factorial_report(document: Mapping[str, Any]) -> Report:
    """Draw and write everything that factorial.json holds; the same document, the same bytes."""
    from markupsafe import Markup

    parts = factorial_sections(document)
    figures, svg = drawn_files([drawn for part in parts for drawn in part.figures])
    missing = document["not_measured"]
    html = template("factorial.html.jinja").render(
        name=document["name"],
        findings=findings(document),
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
    """What was found, in a few sentences; see `findings`."""
    return " ".join(findings(document))


def findings(document: Row) -> list[str]:
    """What was found, the most important first, one sentence or two each.

    Raises:
        TableError: Another version wrote the document.
    """
    if not checked(document)["rates"]:
        return ["No cell could be measured."]
    top = highest(document)
    said = [_alone(document)]
    shown = []
    for (found, of), how in (
        (shown_by_gee(document), "by log-odds (GEE)"),
        (shown_by_cdi(document), f"by rates (CDI at T = {top:g} excludes 0)"),
    ):
        if of:
            shown.append(f"in {len(found)} of {words.count(len(of), 'quantized cell')} {how}")
    if shown:
        said.append(f"That it acts otherwise is shown {words.listed(shown)}.")
    hot = [row for row in harmful(document) if row["temperature"] == top]
    worst = max(hot, key=lambda row: row["unclear_share"] or 0.0, default=None)
    if worst is not None and (worst["unclear_share"] or 0.0) > MUCH_UNCLEAR:
        said.append(
            f"At temperature {top:g} up to {words.percent(worst['unclear_share'])} of a cell's "
            f"answers ({cell_name(worst, models_of(document))}) are unclear and in no rate."
        )
    if document["ensemble"]["judges"] == document["ensemble"]["blind"]:
        said.append(NOBODY_TELLS)
    return said


def _alone(document: Row) -> str:
    """The largest change of a baseline's ASR from temperature 0 to the highest."""
    base = [row for row in harmful(document) if not row["baseline"]]
    moves = [hot["asr"] - cold["asr"] for cold, hot in both_ends(document, base)]
    top = f"{highest(document):g}"
    if not moves:
        return f"No baseline has a rate at temperature 0 and at {top}."
    return (
        f"Temperature {top} alone changes the baselines' share of answered harmful prompts by "
        f"{words.signed(100 * max(moves, key=abs))} points."
    )


def tiles(document: Row) -> list[tuple[str, str, str]]:
    """Numbers at the top: name, value, what it is of."""
    design = document["design"]
    ensemble = document["ensemble"]
    lost = ensemble["incomplete"]
    found = [
        (
            "design",
            words.count(len(design["cells"]), "cell"),
            f"{words.count(models_of(document), 'model')}, "
            f"{words.count(len(design['temperatures']), 'temperature')}, "
            f"{words.count(len(design['judges']), 'judge')}",
        ),
        (
            "answers",
            f"{ensemble['answers']:,}",
            f"{lost:,} lack a judge's label and are in no rate"
            if lost
            else "each read by every judge",
        ),
    ]
    hot = [row for row in harmful(document) if row["temperature"] == highest(document)]
    read = sum(row["unclear"] + row["decided"] for row in hot)
    if read:
        unclear = words.percent(sum(row["unclear"] for row in hot) / read)
        found.append(
            ("unclear", unclear, f"of harmful answers at T = {highest(document):g}; in no rate")
        )
    top = most_wavering(document)
    if top is not None:
        found.append(
            (
                "most prompts waver",
                f"≥ {words.percent(top['dfr_least'])}",
                f"of {top['prompts']} in {top['cell']} at T = {top['temperature']:g}, at most "
                f"{words.percent(top['dfr_most'])}; {top['k']} samples",
            )
        )
    agreed = ensemble["agreement"]
    if agreed and agreed["fleiss_kappa"] is not None:
        kappa, whole = (words.plain(agreed[f"fleiss_kappa{end}"], 2) for end in ("", "_all"))
        found.append(("judges agree", f"kappa {kappa}", f"without unclear answers; {whole} with"))
    return found
