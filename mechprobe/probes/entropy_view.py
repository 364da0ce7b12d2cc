"""An entropy result as a table and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from mechprobe.probes.figures import COLOURS, MARKERS, cell_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mechprobe.behavior.rate import Rate
    from mechprobe.probes.entropy import EntropyResult, PromptSetEntropy
    from mechprobe.stats import Estimate


def table(result: EntropyResult) -> Table:
    """Measures by row, prompt sets by column."""
    versus = f"against {cell_name(result.baseline)}" if result.baseline else None
    out = Table(title=f"entropy: {cell_name(result.cell)}", box=None, pad_edge=False)
    out.title_justify = out.caption_justify = "left"
    out.add_column("first generated token", no_wrap=True)
    for head in ("harmful prompts", "harmless prompts"):
        out.add_column(head, overflow="fold")
    for label, values in _rows(result):
        if any(value is not None for value in values):
            cells = ["" if value is None else str(value) for value in values]
            out.add_row(label, *cells)
    lines = [
        versus,
        *(f"warning: {line}" for line in result.warnings),
        *(f"not measured: {line}" for line in result.not_measured),
    ]
    if result.tokens:
        lines.insert(1, f"refusal tokens: {result.tokens}")
    out.caption = "\n".join(line for line in lines if line) or None
    return out


def _rows(result: EntropyResult) -> list[tuple[str, list[Any]]]:
    sides = (result.harmful, result.harmless)

    def effect(side: PromptSetEntropy, name: str) -> str | None:
        shift = getattr(side, name)
        return None if shift is None or shift.effect is None else f"{shift.effect:+.2f}"

    return [
        ("prompts", [side.n for side in sides]),
        ("entropy, nats", [side.entropy for side in sides]),
        ("  shift against baseline", [side.shift for side in sides]),
        ("  effect size d_z", [effect(side, "shift") for side in sides]),
        ("KL(baseline ‖ cell), nats", [_small(side.kl) for side in sides]),
        ("top token changed", [_share(side.flips) for side in sides]),
        ("refusal log-odds, nats", [side.log_odds for side in sides]),
        ("  shift against baseline", [side.log_odds_shift for side in sides]),
        ("  effect size d_z", [effect(side, "log_odds_shift") for side in sides]),
        ("refusal margin lost", [result.margin_lost, None]),
    ]


def _share(found: Rate | None) -> str | None:
    """Without its counts: n is in the first row."""
    if found is None or found.rate is None:
        return None
    return f"{100 * found.rate:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _small(found: Estimate | None) -> str | None:
    return f"{found.value:.2g} [{found.low:.2g}, {found.high:.2g}]" if found else None


def figure(result: EntropyResult) -> Figure:
    """Entropy and refusal log-odds of every prompt.

    With a baseline: baseline across, cell upwards, no change on the diagonal. Without: the share of
    prompts at or below each value.
    """
    panels = [("entropy", "entropy of the first token (nats)")]
    if "log_odds" in result.harmful.per_prompt:
        panels.append(("log_odds", "refusal log-odds (nats)"))
    fig = Figure(figsize=(9.2 if len(panels) > 1 else 7.2, 4.7), dpi=100, layout="constrained")
    for axes, (name, label) in zip(
        np.atleast_1d(fig.subplots(1, len(panels))), panels, strict=True
    ):
        if result.baseline is None:
            _cumulative(axes, result, name, label)
        else:
            _paired(axes, result, name, label)
        axes.spines[["top", "right"]].set_visible(False)
    versus = f"\nagainst {cell_name(result.baseline)}" if result.baseline else ""
    fig.suptitle(f"Entropy probe: {cell_name(result.cell)}{versus}", fontsize=11)
    # outside, where it hides no prompt
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return fig


def _sides(result: EntropyResult) -> list[tuple[str, PromptSetEntropy]]:
    return [("harmless", result.harmless), ("harmful", result.harmful)]


def _paired(axes: Axes, result: EntropyResult, name: str, label: str) -> None:
    columns: list[Any] = []
    for side, found in _sides(result):
        before = np.array(found.per_prompt[f"baseline_{name}"])
        after = np.array(found.per_prompt[name])
        columns.append((before, after))
        axes.scatter(
            before,
            after,
            s=22,
            alpha=0.6,
            color=COLOURS[side],
            marker=MARKERS[side],
            linewidths=0,
            label=f"{side} (n = {found.n})",
        )
    # each axis its own span: a cell that moved far would squeeze the baseline into a thin column
    across, upwards = (_span(np.concatenate(values)) for values in zip(*columns, strict=True))
    if name == "log_odds":
        axes.axhline(0, color="0.85", linewidth=1, zorder=0)
        axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.axline((0, 0), slope=1, color="0.4", lw=1, ls="--", zorder=0, label="no change")
    axes.set(xlim=across, ylim=upwards)
    axes.set_xlabel(f"baseline: {label}")
    axes.set_ylabel(f"cell: {label}")
    said, found_shift = (
        ("shift on harmful", result.harmful.shift)
        if name == "entropy"
        else ("refusal margin lost", result.margin_lost)
    )
    if found_shift is not None:
        axes.set_title(f"{said}: {found_shift} nats", fontsize=10)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    pad = 0.05 * (float(np.ptp(values)) or 1.0)
    return float(values.min()) - pad, float(values.max()) + pad


def _cumulative(axes: Axes, result: EntropyResult, name: str, label: str) -> None:
    for side, found in _sides(result):
        values = np.sort(found.per_prompt[name])
        axes.ecdf(values, color=COLOURS[side], linewidth=2, label=f"{side} (n = {found.n})")
    axes.set(ylim=(0, 1.02))
    axes.set_xlabel(label)
    axes.set_ylabel("share of prompts at or below")
