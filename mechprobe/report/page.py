"""The report: one HTML file that asks nothing of the network, and its figures.

Names, errors and ids come from models and files, and are untrusted: the template escapes whatever
it is given, figures take text as text, and the page's own policy allows no script but this one.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence

from mechprobe.report import palette
from mechprobe.report.evidence import row_views, shown_indices
from mechprobe.report.headline import MOST_MISSING, detection_table, headline
from mechprobe.report.heat import heat, heat_figure
from mechprobe.report.section import Drawn, Material, Section
from mechprobe.report.sections import sections
from mechprobe.report.templating import Report, asset, drawn_files, template

_SHADES = ("50 or more lost", "25", "10", "3", "about the same", "3 or more gained", "10")


def make_report(material: Material) -> Report:
    """Draw and write everything that the material holds.

    Args:
        material: The document and, where there are some, matrix and outcomes.
    """
    from markupsafe import Markup

    found = heat(material)
    parts = sections(material)
    figures, svg = drawn_files(drawings(material, parts))
    views = row_views(material)
    script = asset("report.js")
    unnamed = [row for row in material.rows if material.unnamed_loss(row)]
    counts = Counter(material.document["regimes"]["counts"])
    counts -= Counter(row["regime"] for row in unnamed)  # these have a line of their own
    html = template("report.html.jinja").render(
        name=material.name,
        top=headline(material),
        detection=detection_table(material),
        most_missing=MOST_MISSING,
        regimes={**palette.REGIMES, **_unknown(material)},
        unnamed=palette.UNNAMED_LOSS,
        unnamed_count=len(unnamed),
        present={row["regime"] for row in material.rows if not material.unnamed_loss(row)},
        counts=counts,
        heat=found,
        bins=palette.BINS,
        shades=_SHADES,
        views=views,
        shown=shown_indices(views),
        total=len(material.rows),
        more_rows=len(material.rows) > len(views),
        sections=parts,
        svg=svg,
        css=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return Report(html, figures)


def drawings(material: Material, parts: Sequence[Section]) -> list[Drawn]:
    """The heat map, then the figures of the sections."""
    return [heat_figure(heat(material)), *(one for part in parts for one in part.figures)]


def _unknown(material: Material) -> dict[str, palette.Look]:
    """Regimes of the document that this version has no words for."""
    names = sorted({row["regime"] for row in material.rows} - palette.REGIMES.keys())
    return {name: palette.look(name) for name in names}
