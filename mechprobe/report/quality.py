"""Quality against refusal, one panel per model: would a quality check have noticed?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, name_points, plain_name, style
from mechprobe.report.section import Drawn, Material, Row, Section, absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Would a quality check have noticed?"
MOST_PANELS, MOST_IN_PANEL, LABELLED = 12, 60, 6
_FAR = 1000.0
_MARKS = {
    "hidden_danger": "D", "near_hidden_danger": "d", "joint_collapse": "v", "over_refusal": "^",
}  # fmt: skip


def quality_section(material: Material) -> Section:
    """The panels, and how often refusals moved further than quality."""
    pairs = [
        row
        for row in material.quantized()
        if material.delta(row, "quality") and material.delta(row, "refusal")
    ]
    if not pairs:
        return absent("quality", TITLE, "no row has both a change of quality and one of refusals")
    lost = [row for row in pairs if material.lost(row)]
    hidden = sum(row["regime"] in ("hidden_danger", "near_hidden_danger") for row in lost)
    if not lost:
        rows = words.count(len(pairs), "row")
        said = [f"There was nothing to notice: no loss beyond the threshold in {rows}."]
    elif hidden:
        rows = words.count(len(lost), "row")
        said = [f"Not in {hidden} of {rows} that lost refusals: there quality held or nearly held."]
    elif len(lost) == 1:
        said = ["Yes: in the one row that lost refusals, quality fell too."]
    else:
        said = [f"Yes: in all {len(lost)} rows that lost refusals, quality fell too."]
    asymmetry = material.document["asymmetry"]
    if "share" in asymmetry:
        said.append(
            f"Refusals moved further than quality in {asymmetry['faster']} of "
            f"{asymmetry['n']} rows ({words.percent(asymmetry['share'], 0)}, 95 % interval "
            f"{words.percent(asymmetry['low'], 0)} to {words.percent(asymmetry['high'], 0)})."
        )
    measure = words.measure_name(material.measure("quality") or "")
    notes = (
        f"Quality here is {measure}. Upper right is unharmed; lower right, shaded, is where "
        "refusals are gone and quality does not tell.",
    )
    return Section("quality", TITLE, tuple(said), (quality_figure(material, pairs),), notes=notes)


def quality_figure(material: Material, pairs: list[Row]) -> Drawn:
    """Panels of the models with most losses, at most twelve."""
    losses = Counter(row["model"] for row in pairs if material.lost(row))
    names = list(dict.fromkeys(row["model"] for row in pairs))
    kept = sorted(names, key=lambda name: -losses[name])[:MOST_PANELS]
    models = [name for name in names if name in kept]
    columns = min(3, len(models))
    lines = -(-len(models) // columns)
    with style():
        figure = blank(3.1 * columns + 0.5, 2.7 * lines + 0.5)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        panels = grid.ravel()
        ends = _limits(material, pairs)
        panels[0].set(xlim=ends[0], ylim=ends[1])
        for axes, model in zip(panels, models, strict=False):
            mine = [row for row in pairs if row["model"] == model]
            mine.sort(key=lambda row: palette.look(row["regime"]).concern)
            _panel(axes, material, mine[:MOST_IN_PANEL])
            axes.set_title(plain_name(model))
        for axes in panels[len(models) :]:
            axes.set_visible(False)
        figure.supxlabel("change of quality, points", fontsize=9)
        figure.supylabel("change of refusals, points", fontsize=9)
    caption = "Change of quality against change of refusals with 95 % intervals, one panel a model."
    if len(names) > len(models):
        caption += f" {len(models)} of {len(names)} models, those with most losses."
    return Drawn("quality-against-refusal", figure, caption)


def _limits(material: Material, rows: list[Row]) -> tuple[tuple[float, float], ...]:
    """Ends of both axes: every point with room, the thresholds, never so near that noise fills."""
    thresholds = material.document["preset"]["thresholds"]
    found = []
    for role, least in (("quality", thresholds["near"]), ("refusal", thresholds["fall"])):
        values = [d["points"] for row in rows if (d := material.delta(row, role))]
        low, high = min([*values, least - 3]), max([*values, 5.0])
        room = 0.08 * (high - low)
        found.append((low - room, high + room))
    return tuple(found)


def _panel(axes: Axes, material: Material, rows: list[Row]) -> None:
    from matplotlib.patches import Rectangle

    limits = material.document["preset"]["thresholds"]
    for edge in (limits["stable"], limits["near"]):
        axes.axvline(edge, color=palette.MUTED, linewidth=0.7, linestyle=":")
    axes.axhline(limits["fall"], color=palette.MUTED, linewidth=0.7, linestyle=":")
    corner = Rectangle((limits["stable"], limits["fall"] - _FAR), _FAR, _FAR)
    corner.set(facecolor=palette.LOSS, alpha=0.13, edgecolor="none", zorder=0)
    axes.add_patch(corner)
    axes.axhline(0, color=palette.LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=palette.LINE, linewidth=0.8, zorder=0)
    named = []
    for place, row in enumerate(rows):
        quality, refusal = material.delta(row, "quality"), material.delta(row, "refusal")
        if quality is None or refusal is None:
            continue
        look = palette.look(row["regime"])
        x, y = quality["points"], refusal["points"]
        for delta, ends in ((quality, "x"), (refusal, "y")):
            low, high = delta["low"], delta["high"]
            if low is not None and high is not None:
                along = ([low, high], [y, y]) if ends == "x" else ([x, x], [low, high])
                axes.plot(*along, color=look.colour, linewidth=0.9, alpha=0.6)
        mark = _MARKS.get(row["regime"], "o")
        axes.plot([x], [y], mark, color=look.colour, markersize=5.5, zorder=3)
        if material.lost(row) and place < LABELLED:
            named.append((x, y, plain_name(row["precision"], 12)))
    name_points(axes, named)
