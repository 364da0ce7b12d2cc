"""What the pages share: templates, the files beside them, and how figures are put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from mechprobe.report import words
from mechprobe.report.drawing import as_png, as_svg, inline

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

    from mechprobe.report.section import Drawn


@dataclass(frozen=True, slots=True)
class Report:
    """What is written: the same material gives the same bytes."""

    html: str
    figures: Mapping[str, bytes]
    """By file name, SVG and PNG."""


def asset(name: str) -> str:
    """A file of the package's templates."""
    return files("mechprobe.report").joinpath("templates", name).read_text(encoding="utf-8")


def template(name: str) -> Template:
    """A template, which escapes whatever it is given and must be given all that it names."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(asset))
    made.globals["count"] = words.count
    return made.get_template(name)


def drawn_files(drawings: Sequence[Drawn]) -> tuple[dict[str, bytes], dict[str, Markup]]:
    """Figures by file name, SVG and PNG, and by their own name to be put into a page."""
    from markupsafe import Markup

    svg = {one.name: as_svg(one.figure) for one in drawings}
    found = {f"{name}.svg": content for name, content in svg.items()}
    found |= {f"{one.name}.png": as_png(one.figure) for one in drawings}
    return found, {d.name: Markup(inline(svg[d.name], d.name, d.caption)) for d in drawings}
