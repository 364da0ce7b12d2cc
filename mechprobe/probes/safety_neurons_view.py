"""A safety-neuron result as a table and as a figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mechprobe.probes.figures import cell_name, plain_log_ticks
from mechprobe.probes.matching import AdjustedRatio
from mechprobe.probes.neuron_errors import Kind, Profile
from mechprobe.probes.neuron_patching import Patching
from mechprobe.probes.neuron_ratios import STUDY_CUTOFF, ErrorRatio, StudyRatio
from mechprobe.stats import PairedShift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from mechprobe.probes.safety_neurons import SafetyNeuronsResult

WORDS: dict[Kind, str] = {"residual": "residual dimensions", "mlp": "MLP neurons"}
SHORT: dict[Kind, str] = {"residual": "residual", "mlp": "MLP"}
_Bar = tuple[str, float, float, float, str]
_SAFETY, _OTHER, _PLAIN = "#b2182b", "#bbbbbb", "#2166ac"


def table(result: SafetyNeuronsResult) -> Table:
    """One line per number; ratios are error of safety neurons over error of others."""
    from rich.table import Table

    versus = "no baseline" if result.baseline is None else cell_name(result.baseline)
    found = Table(
        title=f"safety neurons: {cell_name(result.cell)}\nagainst {versus}",
        box=None,
        pad_edge=False,
        min_width=60,
        title_justify="left",
        caption_justify="left",
    )
    found.add_column("measure", no_wrap=True)
    found.add_column("value [95 %]", no_wrap=True)
    found.add_column("p", justify="right")
    found.add_column("from")
    if (study := result.study) is not None:
        found.add_row(
            "study ratio, unadjusted",
            _value(study.mean, study.low, study.high),
            _p(study.p),
            f"{study.n_error} prompts",
        )
    for row in result.ratios:
        if row.layer is None:
            _ratio_rows(found, row)
    for part in result.patching:
        _patching_rows(found, part)
    lines = ["ratios: error at safety neurons / at others; 1 = no more than others"]
    if result.patching:
        first = result.patching[0].positions[0]
        places = "the last token" if first == -1 else f"tokens {first} to -1"
        lines.append(f"patching: refusal log-odds in nats, neurons put back at {places}")
    lines += [f"warning: {line}" for line in result.warnings]
    lines += [f"not measured: {line}" for line in result.not_measured]
    found.caption = "\n".join(lines)
    return found


def _ratio_rows(found: Table, row: ErrorRatio) -> None:
    kept = row.n_safety - row.n_unmatched
    adjusted = row.adjusted
    found.add_row(
        f"{SHORT[row.kind]} {row.cutoff:.0%}, scale-matched",
        _adjusted(adjusted),
        _p(adjusted.p if adjusted else None),
        f"{kept} of {row.n_safety} matched",
        style=None if row.cutoff != STUDY_CUTOFF else "bold",
    )
    if row.cutoff != STUDY_CUTOFF:
        return
    found.add_row("  unadjusted", _value(row.ratio), "", "")
    found.add_row("  relative to activation", _value(row.relative), "", "")
    if row.weight is not None:
        found.add_row("  own weights", _value(row.weight), "", "")
        found.add_row("  own weights, relative", _value(row.weight_relative), "", "")
        weight = row.weight_adjusted
        p = _p(weight.p if weight else None)
        found.add_row("  own weights, matched", _adjusted(weight), p, "")


def _patching_rows(found: Table, part: Patching) -> None:
    found.add_row(f"patching, {SHORT[part.kind]}", "", "", f"{part.n_prompts} prompts")
    found.add_row("  margin lost", str(part.margin_lost), "", "")
    share = "" if part.share is None else f", {part.share:.0%} of it"
    found.add_row("  back: safety neurons", str(part.whole), "", f"{part.n_neurons}{share}")
    if part.matched is not None and part.random_interval is not None:
        n = part.n_neurons - part.n_unmatched
        low, high = part.random_interval
        found.add_row("    with a match", str(part.matched), "", f"{n}")
        found.add_row(
            "    random, same scale",
            f"{part.random_mean:+.3f} [{low:+.3f}, {high:+.3f}]",
            "",
            f"{n}, {len(part.random)} draws",
        )
        found.add_row("    safety - random", str(part.excess), _p(part.p), "", style="bold")
    found.add_row("  back: all neurons", str(part.everything), "", "the most there is")


def figure(result: SafetyNeuronsResult) -> Figure:
    """One panel for each thing that was measured: error against scale, the ratios, patching."""
    from matplotlib.figure import Figure

    panels: list[Callable[[Axes], None]] = []
    kinds = [kind for kind in WORDS if result.of_kind(kind)]
    if kinds:
        profiles = result.of_kind(kinds[0])
        panels.append(lambda axes: _scatter(axes, profiles[len(profiles) // 2]))
    if result.ratios:
        panels.append(lambda axes: _ratios(axes, result))
    elif (study := result.study) is not None:
        panels.append(lambda axes: _study(axes, study))
    panels += [partial(_bars, part=part) for part in result.patching]
    lines = -(-len(panels) // 2) or 1
    page = Figure(figsize=(9, 0.7 + 3.3 * lines), layout="constrained")
    versus = f"\nagainst {cell_name(result.baseline)}" if result.baseline else ""
    why = "" if panels else "\nnot measured: " + "; ".join(result.not_measured)
    page.suptitle(f"Safety neurons: {cell_name(result.cell)}{versus}{why}", fontsize=11, wrap=True)
    for number, draw in enumerate(panels):
        draw(page.add_subplot(lines, min(2, len(panels)), number + 1))
    return page


def _study(axes: Axes, study: StudyRatio) -> None:
    """The published ratio, layer by layer."""
    axes.plot(study.layers, study.ratios, "o", mfc="none", mec=_PLAIN, label="layer")
    axes.axhline(study.mean, color=_PLAIN, lw=1, label=f"mean {study.mean:.2f}")
    axes.axhline(1.0, color="0.5", lw=0.8, ls="--")
    axes.set(xticks=study.layers, xlabel="layer", ylabel="error at safety neurons / at others")
    axes.set_title("Study ratio, unadjusted for scale", fontsize=10)
    _legend_below(axes)


def _scatter(axes: Axes, profile: Profile) -> None:
    sets = profile.matched(STUDY_CUTOFF)
    safety = profile.safety(STUDY_CUTOFF)
    scale = np.exp(profile.scale)
    axes.scatter(scale[~safety], profile.error[~safety], s=8, c=_OTHER, label="others")
    for name, dims, face in (
        ("safety, matched", sets.safety, _SAFETY),
        ("safety, no match", sets.unmatched, "none"),
    ):
        if len(dims):
            axes.scatter(
                scale[dims], profile.error[dims], s=22, facecolors=face, edgecolors=_SAFETY,
                label=f"{name} ({len(dims)})",
            )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="baseline activation, held-out RMS",
        ylabel="mean |cell - baseline|",
    )
    axes.set_title(f"{WORDS[profile.kind]}, layer {profile.layer}", fontsize=10)
    plain_log_ticks(axes.xaxis)
    plain_log_ticks(axes.yaxis)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Under the label of the x axis, where it hides no point."""
    axes.legend(
        fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17),
        columnspacing=1.0, handletextpad=0.3,
    )  # fmt: skip


def _ratios(axes: Axes, result: SafetyNeuronsResult) -> None:
    rows = [row for row in result.ratios if row.layer is None]
    labels = []
    for place, row in enumerate(rows):
        labels.append(f"{SHORT[row.kind]} {row.cutoff:.0%}")
        if row.ratio is not None:
            axes.plot(row.ratio, place, "o", mfc="none", mec=_PLAIN)
        found = row.adjusted
        if found is None:
            axes.annotate("not measured", (1.0, place), xytext=(6, -3), textcoords="offset points",
                          fontsize=7, color="0.4")  # fmt: skip
            continue
        axes.plot(found.ratio, place, "s", color=_SAFETY, ms=5)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], "-", color=_SAFETY)
    axes.plot([], [], "o", mfc="none", mec=_PLAIN, label="unadjusted")
    axes.plot([], [], "s-", color=_SAFETY, ms=5, label="scale-matched, 95 %")
    axes.axvline(1.0, color="0.5", lw=0.8, ls="--")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="error at safety neurons / at others")
    axes.set_title("All layers, by cut-off", fontsize=10)
    plain_log_ticks(axes.xaxis)
    _legend_below(axes)


def _bars(axes: Axes, part: Patching) -> None:
    def row(name: str, shift: PairedShift, color: str) -> _Bar:
        return name, shift.value, shift.low, shift.high, color

    rows = [row("margin lost", part.margin_lost, "0.4"), row("back: safety", part.whole, _SAFETY)]
    if part.matched is not None and part.random_mean is not None and part.random_interval:
        rows += [
            row("matched safety", part.matched, _SAFETY),
            ("matched random", part.random_mean, *part.random_interval, _PLAIN),
        ]
    rows.append(row("all neurons", part.everything, "0.7"))
    for place, (_, value, low, high, color) in enumerate(rows):
        axes.barh(place, value, color=color, height=0.6)
        axes.plot([low, high], [place, place], color="black", lw=1.2)
    axes.set_yticks(range(len(rows)), [each[0] for each in rows])
    axes.invert_yaxis()
    axes.axvline(0.0, color="0.5", lw=0.8)
    axes.set_xlabel("refusal log-odds (nats)")
    title = f"Patching {part.n_neurons} {WORDS[part.kind]}"
    if part.excess is not None:
        title += f"\nsafety - random: {part.excess}"
    if part.p is not None:
        title += f", p = {_p(part.p)}"
    axes.set_title(title, fontsize=10)


def _value(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _adjusted(found: AdjustedRatio | None) -> str:
    return _value(None) if found is None else _value(found.ratio, found.low, found.high)


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
