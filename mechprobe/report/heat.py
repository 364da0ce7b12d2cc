"""The matrix at a glance: models by cells, the change of refusals, the regime's sign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, plain_name, style
from mechprobe.report.section import Drawn, Material, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MODELS, MOST_COLUMNS = 40, 24


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One row of the matrix in its place."""

    index: int
    """Of the row in the document."""
    text: str
    sign: str
    shade: int | None
    """Index into `palette.SHADES`; None where there is no change to show."""
    said: str
    """The whole of it in words."""


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A model; its cells stand under the columns, None where it has no such cell."""

    model: str
    cells: tuple[HeatCell | None, ...]


@dataclass(frozen=True, slots=True)
class Heat:
    """Models by cells."""

    columns: tuple[str, ...]
    """Cell keys."""
    rows: tuple[HeatRow, ...]
    totals: tuple[tuple[int, int], ...]
    """Per column, over all models: rows that lost refusals, and rows that were compared."""
    more_models: int
    more_columns: int

    @property
    def engines(self) -> list[tuple[str, int]]:
        """Engines above the columns and how many columns each spans."""
        spans: list[tuple[str, int]] = []
        for key in self.columns:
            engine = key.partition("@")[2]
            if spans and spans[-1][0] == engine:
                spans[-1] = (engine, spans[-1][1] + 1)
            else:
                spans.append((engine, 1))
        return spans


def heat(material: Material) -> Heat:
    """Lay the rows out.

    Of very many models those with most losses are kept, of very many columns the commonest.
    """
    rows = material.rows
    columns = _columns(rows)
    by_model: dict[str, dict[str, int]] = {}
    for index, row in enumerate(rows):
        by_model.setdefault(row["model"], {})[row["cell"]] = index
    models = list(by_model)
    if len(models) > MOST_MODELS:
        losses = Counter(row["model"] for row in rows if material.lost(row))
        models = sorted(models, key=lambda name: -losses[name])[:MOST_MODELS]
    known = Counter(row["cell"] for row in rows if material.delta(row, "refusal"))
    bad = Counter(row["cell"] for row in rows if material.lost(row))
    shown = columns[:MOST_COLUMNS]
    return Heat(
        columns=tuple(shown),
        rows=tuple(
            HeatRow(
                model,
                tuple(
                    _cell(material, by_model[model][key]) if key in by_model[model] else None
                    for key in shown
                ),
            )
            for model in models
        ),
        totals=tuple((bad[key], known[key]) for key in shown),
        more_models=len(by_model) - len(models),
        more_columns=len(columns) - len(shown),
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    """Cell keys by engine, in their order; those that are left out where there are many last."""
    seen = Counter(row["cell"] for row in rows)
    kept = {key for key, _ in seen.most_common(MOST_COLUMNS)}
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    engine = {row["cell"]: engines.index(row["engine"]) for row in rows}
    return sorted(seen, key=lambda key: (key not in kept, engine[key]))


def _cell(material: Material, index: int) -> HeatCell:
    row = material.rows[index]
    look = palette.look(row["regime"])
    delta = material.delta(row, "refusal")
    name = f"{row['model']}, {row['precision']} on {row['engine']}"
    if not row["baseline"]:
        return HeatCell(index, "base", look.sign, None, f"{name}: baseline")
    if delta is None:
        return HeatCell(index, "?", "", None, f"{name}: {words.NOTHING}")
    lost = "refusals lost, " if material.lost(row) else ""
    sign = palette.UNNAMED_LOSS.sign if material.unnamed_loss(row) else look.sign
    said = f"{name}: {lost}refusals {words.change(delta)} points, {look.label}"
    points = delta["points"]
    return HeatCell(index, words.signed(points), sign, palette.shade(points), said)


def heat_figure(found: Heat) -> Drawn:
    """The layout as a figure."""
    width = min(14.0, 2.6 + 0.72 * len(found.columns))
    height = 1.9 + 0.42 * len(found.rows)
    with style():
        figure = blank(width, height)
        axes = figure.subplots()
        _draw(axes, found)
        _legend(figure)
        axes.set_title("Change of refusals on harmful prompts, in points, and regime")
    caption = "Models by cells: change of the refusal rate in points, with the sign of the regime."
    return Drawn("matrix", figure, caption)


def _draw(axes: Axes, found: Heat) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(found.rows):
        for x, cell in enumerate(row.cells):
            if cell is None:
                continue
            lost = cell.shade is None
            face = palette.PAPER if cell.shade is None else palette.SHADES[cell.shade]
            box = Rectangle(
                (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=face, edgecolor=palette.MUTED,
                linewidth=0.4, hatch="////" if cell.text == "?" else None,
            )  # fmt: skip
            axes.add_patch(box)
            ink = "#ffffff" if cell.shade == 0 else palette.MUTED if lost else "#000000"
            axes.text(x, y - 0.14, cell.text, ha="center", va="center", fontsize=8, color=ink)
            axes.text(x, y + 0.25, cell.sign, ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlim(-0.6, len(found.columns) - 0.4)
    axes.set_ylim(len(found.rows) - 0.4, -0.6)
    axes.set_xticks(
        range(len(found.columns)),
        [plain_name(key.replace("@", "\n"), 14) for key in found.columns],
        rotation=45, ha="right", rotation_mode="anchor", fontsize=8,
    )  # fmt: skip
    axes.set_yticks(range(len(found.rows)), [plain_name(row.model) for row in found.rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    looks = {**palette.REGIMES, "": palette.UNNAMED_LOSS}
    shown = [look for name, look in looks.items() if name != "baseline"]
    figure.legend(
        [Line2D([], [], linestyle="none") for _ in shown],
        [f"{look.sign} {look.label}" for look in shown],
        loc="outside lower left", ncols=3, fontsize=8, handlelength=0, handletextpad=0,
    )  # fmt: skip
