"""Figures as bytes: the same figure gives the same bytes, and follows the theme of a page.

Nothing here uses pyplot, so that no figure is kept and no display is asked for.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechprobe.report.palette import INK, LINE, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 32
"""Characters of a name in a figure."""
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": LINE,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "mechprobe",
}
_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--paper)"}
_PREAMBLE = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r' width="[\d.]+pt"| height="[\d.]+pt"')
_WIDTH = re.compile(r' width="([\d.]+)pt"')
_IDENTITY = re.compile(r'(\bid="|href="#|url\(#)')


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the report's style; what the caller set in matplotlib is left alone."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of untrusted names
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches; drawn within `style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def as_png(figure: Figure) -> bytes:
    """The figure at 144 dots per inch, without the date or the version of what drew it."""
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
    return out.getvalue()


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG with its text as text, without the date or the version of what drew it."""
    out = io.BytesIO()
    with style():
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", metadata=empty)
    return out.getvalue()


def inline(svg: bytes, name: str, label: str) -> str:
    """An SVG to stand within a page: it takes the page's colours and says what it shows.

    Args:
        svg: From `as_svg`.
        name: Begins every id, so that two figures of a page share none.
        label: For people who do not see it.
    """
    from markupsafe import escape

    text = _PREAMBLE.sub("", svg.decode())
    points = _WIDTH.search(text)
    width = float(points[1]) * 1.4 if points else 0.0  # 9 pt letters become 12.6 px ones
    text = _SIZE.sub("", text, count=2)
    text = _IDENTITY.sub(rf"\g<1>{name}-", text)
    for colour, variable in _THEME.items():
        text = text.replace(f": {colour}", f": {variable}")
    size = f"max-width:{width:.0f}px;min-width:{min(0.7 * width, 544):.0f}px"
    head = f'<svg role="img" aria-label="{escape(label)}" style="{size}"'
    return text.replace("<svg", head, 1).strip()


def plain_name(name: object, longest: int = LONGEST) -> str:
    """A name in one line and of bounded length: control characters go, the middle is cut."""
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(name)).strip()
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def name_points(axes: Axes, named: Sequence[tuple[float, float, str]]) -> None:
    """Names beside their points, on the side with room, none closer to another than a line.

    Args:
        axes: With its limits set.
        named: x, y and text of each.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    points, across = (x / axes.figure.dpi * 72 for x in (axes.bbox.height, axes.bbox.width))
    line = 11.0 / points * (top - bottom)
    last = {"left": bottom - line, "right": bottom - line}
    for x, y, text in sorted(named, key=lambda one: (one[1], one[0])):
        wide = 4.5 * (len(text) + 2) / across * (right - left)
        sides = ["right", "left"] if x > left + 0.6 * (right - left) else ["left", "right"]
        room = {"left": right - x, "right": x - left}
        sides = [side for side in sides if room[side] >= wide] or sides
        free = [side for side in sides if y - last[side] >= line]
        side = free[0] if free else min(sides, key=lambda one: last[one])
        last[side] = max(y, last[side] + line)
        axes.annotate(
            text, (x, last[side]), xytext=(-6 if side == "right" else 6, 0),
            textcoords="offset points", ha=side, va="center", fontsize=7.5,
        )  # fmt: skip


def zero_line(axes: Axes, at: float = 0.0, *, upright: bool = True) -> None:
    """A thin line where nothing changed."""
    (axes.axvline if upright else axes.axhline)(at, color=MUTED, linewidth=0.8, zorder=1)
