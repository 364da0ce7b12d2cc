"""The report: one HTML file that asks nothing of the network, and its figures.

Names, errors and ids come from models and files, and are untrusted: the template escapes whatever
it is given, figures take text as text, and the page's own policy allows no script but this one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from mechprobe.report import palette, words
from mechprobe.report.drawing import as_png, as_svg, inline
from mechprobe.report.evidence import row_views, shown_indices
from mechprobe.report.headline import MOST_MISSING, detection_table, headline
from mechprobe.report.heat import heat, heat_figure
from mechprobe.report.section import Drawn, Material, Section
from mechprobe.report.sections import sections

if TYPE_CHECKING:
    from jinja2 import Template

_SHADES = ("50 or more lost", "25", "10", "3", "about the same", "3 or more gained", "10")


@dataclass(frozen=True, slots=True)
class Report:
    """What is written: the same material gives the same bytes."""

    html: str
    figures: Mapping[str, bytes]
    """By file name, SVG and PNG."""


def make_report(material: Material) -> Report:
    """Draw and write everything that the material holds.

    Args:
        material: The document and, where there are some, matrix and outcomes.
    """
    from markupsafe import Markup

    found = heat(material)
    parts = sections(material)
    drawn = drawings(material, parts)
    svg = {one.name: as_svg(one.figure) for one in drawn}
    figures = {f"{name}.svg": content for name, content in svg.items()}
    figures |= {f"{one.name}.png": as_png(one.figure) for one in drawn}
    views = row_views(material)
    script = _file("report.js")
    html = _template().render(
        name=material.name,
        top=headline(material),
        detection=detection_table(material),
        most_missing=MOST_MISSING,
        regimes={**palette.REGIMES, **_unknown(material)},
        present={row["regime"] for row in material.rows},
        counts=material.document["regimes"]["counts"],
        heat=found,
        bins=palette.BINS,
        shades=_SHADES,
        views=views,
        shown=shown_indices(views),
        total=len(material.rows),
        more_rows=len(material.rows) > len(views),
        sections=parts,
        svg={one.name: Markup(inline(svg[one.name], one.name, one.caption)) for one in drawn},
        css=Markup(_file("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        count=words.count,
    )
    return Report(html, figures)


def drawings(material: Material, parts: Sequence[Section]) -> list[Drawn]:
    """The heat map, then the figures of the sections."""
    return [heat_figure(heat(material)), *(one for part in parts for one in part.figures)]


def _unknown(material: Material) -> dict[str, palette.Look]:
    """Regimes of the document that this version has no words for."""
    names = sorted({row["regime"] for row in material.rows} - palette.REGIMES.keys())
    return {name: palette.look(name) for name in names}


def _file(name: str) -> str:
    return files("mechprobe.report").joinpath("templates", name).read_text(encoding="utf-8")


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return made.from_string(_file("report.html.jinja"))
