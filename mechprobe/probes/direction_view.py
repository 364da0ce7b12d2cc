"""The refusal direction's result for people: a table and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.probes.candidates import Scores
from mechprobe.probes.figures import cell_name, series
from mechprobe.probes.selection import dropped
from mechprobe.probes.separability import Separability
from mechprobe.probes.steering import CausalCheck

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from mechprobe.probes.direction_result import RefusalDirectionResult

HARMFUL, HARMLESS, GREY = "#b2452f", "#2f6f9f", "#8a8a8a"
_REASONS = {
    "nan": "no number",
    "layer": "too late a layer",
    "kl": "KL",
    "induce": "induces none",
    "bypass": "bypasses less",
}


def _fixed(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _place(position: int, layer: int, n_layers: int) -> str:
    token = "last token" if position == -1 else f"token {position}"
    return f"input of block {layer} of {n_layers}, {token}"


def table(result: RefusalDirectionResult) -> Table:
    """Names, values with intervals, and what was not measured."""
    from rich.table import Table

    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    direction = result.direction
    made.add_row("model", cell_name(direction))
    if result.baseline is not None:
        made.add_row("baseline", result.baseline)
    if result.study:
        made.add_row("mode", "study: last token, 65 % depth, on the prompts that were fitted")
    made.add_row("place", _place(result.position, result.layer, direction.n_layers))
    made.add_row(
        "fitted on",
        f"{direction.n_harmful} of {direction.n_harmful_given} harmful, "
        f"{direction.n_harmless} of {direction.n_harmless_given} harmless",
    )
    if result.scores is not None:
        for name, text in _selection_rows(result.scores):
            made.add_row(name, text)
    made.add_row("norm", f"{result.norm:.3f}")
    if result.cosine is not None:
        made.add_row(
            "cosine to baseline",
            f"{_fixed(result.cosine)} (noise floor {_fixed(result.cosine_floor)})",
        )
        made.add_row("norm / baseline's", _fixed(result.norm_ratio))
    else:
        made.add_row("split-half cosine", _fixed(result.cosine_floor))
    if result.angles is not None:
        floor = result.angles.floor
        said = "not measured" if floor is None else _degrees(floor)
        made.add_row("principal angles", f"{_degrees(result.angles.degrees)} (noise floor {said})")
    for part in (result.own, result.on_baseline):
        if part is not None:
            for name, text in _separability_rows(part, result):
                made.add_row(name, text)
    if result.causal is not None:
        for name, text in _causal_rows(result.causal):
            made.add_row(name, text)
    for line in result.warnings:
        made.add_row("warning", line)
    for line in result.not_measured:
        made.add_row("not measured", line, style="dim")
    return made


def _degrees(angles: tuple[float, ...]) -> str:
    return ", ".join(f"{angle:.1f}°" for angle in angles)


def _selection_rows(scores: Scores) -> list[tuple[str, str]]:
    lost = ", ".join(f"{_REASONS[k]} {n}" for k, n in dropped(scores.table).items() if n)
    kept = int((scores.table["dropped"] == "").sum())
    rows = [("candidates", f"{len(scores.table)}, {kept} kept (dropped: {lost or 'none'})")]
    if (chosen := scores.selection) is not None:
        rows += [
            (
                "  bypass",
                f"{chosen.bypass:+.2f} refusal log-odds, harmful; was {scores.harmful:+.2f}",
            ),
            ("  induce", f"{chosen.induce:+.2f}, harmless; was {scores.harmless:+.2f}"),
            ("  KL", f"{chosen.kl:.4f} nats, harmless, ablated"),
        ]
    return rows


def _separability_rows(part: Separability, result: RefusalDirectionResult) -> list[tuple[str, str]]:
    whose = "" if part.onto == "own" else " on baseline's"
    held = f"{result.n_harmful} harmful, {result.n_harmless} harmless, held out"
    crossed = part.crossed
    return [
        (f"AUC{whose}", f"{part.auc or 'not measured'} ({held})"),
        (f"d′{whose}", str(part.dprime or "not measured")),  # noqa: RUF001 - the field's own name
        (
            f"margin{whose}",
            f"harmful {part.harmful_quantiles[2]:+.2f}, harmless {part.harmless_quantiles[2]:+.2f} "
            f"(medians; fitted means are +1 and -1); {crossed[0]} and {crossed[1]} on the wrong "
            "side",
        ),
    ]


def _causal_rows(check: CausalCheck) -> list[tuple[str, str]]:
    return [
        ("harmful refused", f"{check.harmful} by “{check.instrument}”"),
        ("  direction ablated", str(check.harmful_ablated)),
        ("  random ablated", str(check.harmful_ablated_random)),
        ("harmless refused", str(check.harmless)),
        ("  direction added", str(check.harmless_added)),
        ("  random added", str(check.harmless_added_random)),
    ]


def figure(result: RefusalDirectionResult) -> Figure:
    """One panel for each thing that was measured; the figure shrinks with what was not."""
    from matplotlib.figure import Figure

    panels: list[Any] = []
    parts = [part for part in (result.own, result.on_baseline) if part is not None]
    if parts:
        panels.append(lambda axes: _margins(axes, parts))
    if result.scores is not None:
        scores = result.scores
        panels.append(lambda axes: _bypass(axes, scores))
        panels.append(lambda axes: _induce(axes, scores))
    if result.causal is not None:
        check = result.causal
        panels.append(lambda axes: _causal(axes, check))
    if not panels:
        panels.append(lambda axes: _norms(axes, result))
    rows = -(-len(panels) // 2)
    made = Figure(figsize=(9.0, 3.4 * rows + 0.7), layout="constrained", dpi=100)
    cells = made.subplots(rows, min(2, len(panels)), squeeze=False).ravel()
    for axes, draw in zip(cells, panels, strict=False):
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    direction = result.direction
    made.suptitle(
        f"Refusal direction: {cell_name(direction)}\n"
        f"{_place(result.position, result.layer, direction.n_layers)}",
        fontsize=11,
    )
    return made


def _margins(axes: Axes, parts: list[Separability]) -> None:
    """Every held-out prompt as a point, its class median as a bar."""
    rng = np.random.default_rng(0)
    ticks = []
    for row, part in enumerate(parts):
        for label, values, colour, offset in (
            ("harmful", part.harmful_margins, HARMFUL, 0.18),
            ("harmless", part.harmless_margins, HARMLESS, -0.18),
        ):
            height = -row + offset + rng.uniform(-0.1, 0.1, len(values))
            axes.scatter(
                values, height, s=9, alpha=0.55, color=colour, linewidths=0,
                label=label if row == 0 else None,
            )  # fmt: skip
            axes.plot([np.median(values)] * 2, [-row + offset - 0.14, -row + offset + 0.14],
                      color="black", linewidth=1.5)  # fmt: skip
        ticks.append("own\ndirection" if part.onto == "own" else "baseline's\ndirection")
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_yticks([-row for row in range(len(parts))], ticks)
    axes.set_ylim(-len(parts) + 0.5, 0.75)
    axes.set_xlabel("margin (fitted means at +1 and -1)")
    axes.set_title("Held-out prompts along the direction", fontsize=10)
    seen = axes.legend(loc="upper left", ncols=2, fontsize=8, frameon=False, markerscale=2.5)
    for handle in seen.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def _candidates(axes: Axes, scores: Scores, column: str, before: float) -> None:
    rows = scores.table
    for index, (position, each) in enumerate(rows.groupby("position")):
        group = each.dropna(subset=[column])
        look = series(index)
        axes.plot(group["layer"], group[column], **look, linewidth=1.4, label=f"{position}")
        kept = group["dropped"] == ""
        for mark, shown in (("o", group[kept]), ("x", group[~kept])):
            axes.scatter(
                shown["layer"], shown[column], s=22, marker=mark, color=look["color"], zorder=3
            )
    axes.axhline(before, color="black", linewidth=0.8, linestyle="--")
    if (chosen := scores.selection) is not None:
        axes.scatter(
            [chosen.layer],
            [getattr(chosen, column)],
            s=130,
            facecolors="none",
            edgecolors="black",
            linewidths=1.4,
            zorder=4,
        )
    axes.set_xlabel("layer whose input carries the direction")
    axes.set_ylabel("refusal log-odds (nats)")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bypass(axes: Axes, scores: Scores) -> None:
    _candidates(axes, scores, "bypass", scores.harmful)
    axes.set_title("Ablated, on harmful prompts (dashes: as it is)", fontsize=10)
    axes.legend(title="token", fontsize=8, title_fontsize=8, frameon=False, ncols=2)


def _induce(axes: Axes, scores: Scores) -> None:
    _candidates(axes, scores, "induce", scores.harmless)
    axes.set_title("Added, on harmless prompts (crosses dropped, ring selected)", fontsize=10)


def _causal(axes: Axes, check: CausalCheck) -> None:
    names = ["as it is", "direction", "random"]
    groups = (
        ("harmful: ablated", HARMFUL,
         (check.harmful, check.harmful_ablated, check.harmful_ablated_random)),
        ("harmless: added", HARMLESS,
         (check.harmless, check.harmless_added, check.harmless_added_random)),
    )  # fmt: skip
    for shift, (label, colour, rates) in zip((-0.19, 0.19), groups, strict=True):
        at = np.arange(3) + shift
        shares = np.array([100 * (rate.rate or 0.0) for rate in rates])
        low = np.array([100 * rate.low for rate in rates])
        high = np.array([100 * rate.high for rate in rates])
        axes.bar(at, shares, width=0.36, color=colour, alpha=0.85, label=label)
        spread = np.clip([shares - low, high - shares], 0, None)
        axes.errorbar(at, shares, yerr=spread, fmt="none", ecolor="black", capsize=3, linewidth=1)
    axes.set_xticks(range(3), names)
    axes.set_ylim(0, 119)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("refused (%), 95 % interval")
    axes.set_title(f"Generated answers, read by “{check.instrument}”", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center")


def _norms(axes: Axes, result: RefusalDirectionResult) -> None:
    direction = result.direction
    for row, position in enumerate(direction.positions):
        lengths = np.linalg.norm(direction.vectors[row].astype(np.float64), axis=1)
        axes.plot(
            range(direction.n_layers), lengths, **series(row), marker="o", label=f"{position}"
        )
    axes.set_xlabel("layer whose input carries the direction")
    axes.set_ylabel("length of the direction")
    axes.legend(title="token", fontsize=8, title_fontsize=8, frameon=False)
