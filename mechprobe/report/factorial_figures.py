"""Figures of a temperature factorial: rates against temperature, interaction, wavering prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.report import palette
from mechprobe.report.drawing import blank, plain_name, style, zero_line
from mechprobe.report.section import Drawn, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12
"""Panels of a figure; models beyond them are in factorial.csv."""
MOST_PROMPTS = 15
_COLUMNS = 3
_MARKS = ("o", "s", "D", "^", "v", "P")
Group = tuple[str, str]
"""Model and engine: what shares a baseline, and so a panel."""


def groups_of(document: Row) -> list[Group]:
    """Models and engines, in the order of the design."""
    cells = document["design"]["cells"]
    return list(dict.fromkeys((one["model"], one["engine"]) for one in cells))


def _in(document: Row, group: Group) -> list[Row]:
    cells = document["design"]["cells"]
    return [one for one in cells if (one["model"], one["engine"]) == group]


def _panels(
    document: Row,
    name: str,
    caption: str,
    label: str,
    draw: Callable[[Axes, Row, str, str, float], None],
) -> Drawn:
    """One panel per model and engine, one line per cell.

    Args:
        document: factorial.json.
        name: Of the figure's files.
        caption: What it shows.
        label: Of the upright axis.
        draw: Given axes, cell, colour, marker and a sideways shift.
    """
    groups = groups_of(document)
    shown = groups[:MOST_PANELS]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    with style():
        figure = blank(3.6 * columns if columns > 1 else 6.4, 2.7 * lines)
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(shown):
                axes.set_visible(False)
                continue
            cells = _in(document, shown[place])
            for at, cell in enumerate(cells):
                colour = palette.SERIES[at % len(palette.SERIES)]
                shift = (at - (len(cells) - 1) / 2) * _step(document)
                draw(axes, cell, colour, _MARKS[at % len(_MARKS)], shift)
            axes.set_title(" · ".join(plain_name(part, 26) for part in shown[place]))
            axes.set_xlabel("temperature")
            axes.set_xticks(document["design"]["temperatures"])
            if place % columns == 0:
                axes.set_ylabel(label)
            if axes.get_legend_handles_labels()[1]:
                axes.legend()
    if len(groups) > len(shown):
        caption += f" {len(shown)} of {len(groups)} models and engines are drawn."
    return Drawn(name, figure, caption)


def _step(document: Row) -> float:
    """How far apart two cells stand at one temperature, so that their intervals can be told."""
    temperatures = document["design"]["temperatures"]
    return 0.012 * float(max(temperatures) - min(temperatures))


def _line(
    axes: Axes, points: Sequence[Row], name: str, look: tuple[str, str, float], label: str
) -> None:
    """Values in points of percent against temperature, with their intervals where they have one."""
    known = [p for p in points if p[name] is not None]
    if not known:
        return
    colour, mark, shift = look
    x = [p["temperature"] + shift for p in known]
    y = [100 * p[name] for p in known]
    axes.plot(x, y, mark, linestyle="-", color=colour, markersize=4.5, linewidth=1.3, label=label)
    for at, value, point in zip(x, y, known, strict=True):
        low, high = (point[f"{name}_{end}"] for end in ("low", "high"))
        if low is not None and high is not None:
            axes.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=1.0, alpha=0.75)
        else:
            axes.plot([at], [value], "o", markersize=9, fillstyle="none", color=colour)


def rate_figure(document: Row, measure: str, request: str, label: str, about: str) -> Drawn:
    """One measure against temperature, a line for each precision.

    Args:
        document: factorial.json.
        measure: `asr`, `over_refusal` or `dfr`.
        request: `harmful` or `benign`.
        label: Of the upright axis.
        about: What it is, for the caption.
    """
    rows = [row for row in document["rates"] if row["request"] == request]

    def draw(axes: Axes, cell: Row, colour: str, mark: str, shift: float) -> None:
        mine = [r for r in rows if (r["model"], r["cell"]) == (cell["model"], cell["cell"])]
        look = (colour, mark, shift)
        axes.set_ylim(-4, 104)
        _line(axes, mine, measure, look, plain_name(cell["precision"], 16))

    caption = f"{about} against temperature; 95 % intervals resample clusters of prompts."
    return _panels(document, f"{measure.replace('_', '-')}-{request}", caption, f"{label}, %", draw)


def interaction_figure(document: Row) -> Drawn:
    """CDI against temperature, a line for each quantized cell."""
    by_cell = {(row["model"], row["cell"]): row["cdi"] for row in document["interactions"]}

    def draw(axes: Axes, cell: Row, colour: str, mark: str, shift: float) -> None:
        zero_line(axes, upright=False)
        found = by_cell.get((cell["model"], cell["cell"]), ())
        points = [{**p, "value_low": p["low"], "value_high": p["high"]} for p in found]
        look = (colour, mark, shift)
        _line(axes, points, "value", look, plain_name(cell["precision"], 16))

    caption = (
        "Interaction (CDI): how much further a cell's ASR moves from temperature 0 than its "
        "baseline's, in points. A ring marks a value without an interval: no prompts differ."
    )
    return _panels(document, "interaction", caption, "CDI, points", draw)


def flips_figure(document: Row) -> Drawn:
    """DFR against the number of samples, at the highest temperature."""
    rows: Sequence[Mapping[str, Any]] = document["flips"]
    hottest = max(document["design"]["temperatures"])

    def draw(axes: Axes, cell: Row, colour: str, mark: str, shift: float) -> None:
        mine = [
            r
            for r in rows
            if (r["model"], r["cell"]) == (cell["model"], cell["cell"])
            and r["temperature"] == hottest
            and r["value"] is not None
        ]
        for beyond, line in ((False, "-"), (True, ":")):
            part = [r for r in mine if r["extrapolated"] is beyond]
            if beyond and part:
                part = [r for r in mine if not r["extrapolated"]][-1:] + part
            label = plain_name(cell["precision"], 16) if not beyond else None
            x, y = [r["k"] for r in part], [100 * r["value"] for r in part]
            if part:
                axes.plot(x, y, linestyle=line, color=colour, linewidth=1.4, label=label)
        axes.set_ylim(-4, 104)

    caption = (
        f"DFR by the number of samples at temperature {hottest:g}: solid, unbiased from the "
        "samples that were drawn; dotted, extrapolated."
    )
    drawn = _panels(document, "dfr-samples", caption, "DFR, % of prompts", draw)
    most = max(r["k"] for r in rows if not r["extrapolated"])
    ticks = [1, *sorted({r["k"] for r in rows if r["k"] % most == 0})]
    for axes in drawn.figure.axes:
        axes.set_xlabel("samples k")
        axes.set_xticks(ticks)
    return drawn


def wavering_figure(document: Row) -> Drawn:
    """The prompts that waver most: SSI by cell and temperature."""
    rows = document["wavering"][:MOST_PROMPTS]
    cells = [(one["cell"], t) for one in _columns(document) for t in _warm(document)]
    with style():
        figure = blank(max(5.4, 2.4 + 0.27 * len(cells)), 1.5 + 0.24 * len(rows))
        axes = figure.subplots()
        values = [
            [{(a["cell"], a["temperature"]): a["ssi"] for a in row["at"]}.get(c) for c in cells]
            for row in rows
        ]
        import matplotlib as mpl
        import numpy as np

        colours = mpl.colors.LinearSegmentedColormap.from_list("ssi", palette.SHADES[:5])
        grid = np.array([[np.nan if v is None else v for v in line] for line in values], float)
        image = axes.imshow(grid, aspect="auto", cmap=colours, vmin=1 / 3, vmax=1)
        many = len({row["model"] for row in rows}) > 1
        names = [f"{row['model']} {row['prompt']}" if many else row["prompt"] for row in rows]
        signs = ["" if row["request"] == "harmful" else " (benign)" for row in rows]
        labels = [plain_name(n, 28) + s for n, s in zip(names, signs, strict=True)]
        axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
        ticks = [f"{cell.partition('@')[0]}  {t:g}" for cell, t in cells]
        axes.set_xticks(range(len(cells)), ticks, rotation=90, fontsize=7.5)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("SSI: 1 is steady")
    caption = (
        f"The {len(rows)} prompts whose answers waver most, by id: SSI per cell and temperature. "
        "Below 0.8 an answer is unstable."
    )
    return Drawn("wavering", figure, caption)


def _columns(document: Row) -> list[Row]:
    """Cells by key, whatever the model."""
    seen: dict[str, Row] = {}
    for one in document["design"]["cells"]:
        seen.setdefault(one["cell"], one)
    return list(seen.values())


def _warm(document: Row) -> list[float]:
    return [t for t in document["design"]["temperatures"] if t > 0]
