"""A calibration result as a table and as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from mechprobe.probes.figures import COLOURS, cell_name
from mechprobe.probes.reliability import BINS, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mechprobe.behavior.rate import Rate
    from mechprobe.probes.calibration import CalibrationResult
    from mechprobe.probes.labelled import LabelledCalibration, RefusalCalibration
    from mechprobe.probes.reliability import Reliability

Row = tuple[str, Any, Any, Any]
FEW = 5
LABELS = {
    "top1": "top-1 probability",
    "top5": "top-5 probability",
    "gini": "Gini impurity",
    "logit_range": "logit range",
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a kind of calibration is called."""

    title: str
    probability: str
    outcome: str
    unit: str
    verdicts: dict[Verdict, str]


ANSWERS = Words(
    "labelled questions",
    "confidence in the chosen option",
    "share of right answers",
    "questions",
    {},
)
REFUSALS = Words(
    "refusal of the whole answer",
    "probability of a refusal token, first position",
    "share of answers that refuse",
    "answers",
    {"overconfident": "too high", "underconfident": "too low"},
)


def table(result: CalibrationResult) -> Table:
    """Measures by row; the cell, its baseline and the paired shift by column."""
    out = Table(title=f"calibration: {cell_name(result.cell)}", box=None, pad_edge=False)
    out.title_justify = out.caption_justify = "left"
    out.add_column("", no_wrap=True)
    for head in ("cell", "baseline", "shift"):
        out.add_column(head, overflow="fold")
    _section(out, f"{result.first_token.n} harmful, first token", _first(result))
    if (asked := result.labelled) is not None:
        head = f"{asked.n} labelled questions"
        _section(out, head, _labelled(asked))
    if (refusal := result.refusal) is not None:
        head = f"{refusal.predicted.n} answers, read by {refusal.instrument!r}"
        _section(out, head, _refusal(refusal))
    lines = []
    if result.baseline:
        lines.append(f"against {cell_name(result.baseline)}")
    if result.tokens:
        lines.append(f"refusal tokens: {result.tokens}")
    lines += [f"warning: {line}" for line in result.warnings]
    lines += [f"not measured: {line}" for line in result.not_measured]
    out.caption = "\n".join(lines) or None
    return out


def _section(out: Table, head: str, rows: list[Row]) -> None:
    out.add_row(head, style="bold")
    for label, *values in rows:
        if any(value is not None for value in values):
            out.add_row(f"  {label}", *("" if value is None else str(value) for value in values))
    out.add_section()


def _first(result: CalibrationResult) -> list[Row]:
    first = result.first_token
    rows: list[Row] = []
    for name, label in LABELS.items():
        shift = first.shifts.get(name)
        rows.append((label, getattr(first, name), _of(shift, "baseline"), shift))
    if first.confidence:
        rows.append(("verdict", f"confidence {first.confidence}", None, None))
    after, before = _of(first, "proxy_ece"), _of(first, "baseline_proxy_ece")
    return [*rows, ("entropy-proxy ECE, no labels", after, before, None)]


def _labelled(found: LabelledCalibration) -> list[Row]:
    top, base = found.top, found.baseline
    true, nll, right = found.true_answer_shift, found.nll_shift, found.accuracy_shift
    brier = found.brier_shift
    points = (
        f"{100 * right.value:+.1f} [{100 * right.low:+.1f}, {100 * right.high:+.1f}] pt"
        if right
        else None
    )
    return [
        ("right", _share(found.accuracy), base and _percent(base.outcome), points),
        ("confidence", top.probability, _of(base, "probability"), found.confidence_shift),
        *_errors(top, base, found.ece_shift),
        ("verdict", _verdict(top, ANSWERS), base and _word(base, ANSWERS), None),
        ("AUROC of confidence", top.auroc, _of(base, "auroc"), None),
        ("Brier, all options", found.brier, _of(brier, "baseline"), brier),
        ("NLL, nats", found.nll, _of(nll, "baseline"), nll),
        ("probability of right option", found.true_answer, _of(true, "baseline"), true),
    ]


def _refusal(found: RefusalCalibration) -> list[Row]:
    mine, base = found.predicted, found.baseline
    return [
        ("refuse", _share(mine.outcome), base and _percent(base.outcome), None),
        ("first-token probability", mine.probability, _of(base, "probability"), None),
        *_errors(mine, base, None),
        ("verdict", _verdict(mine, REFUSALS), base and _word(base, REFUSALS), None),
        ("AUROC", mine.auroc, _of(base, "auroc"), None),
        ("Brier", mine.brier, _of(base, "brier"), None),
        ("not read", found.unread or None, None, None),
    ]


def _errors(mine: Reliability, base: Reliability | None, shift: Any) -> list[Row]:
    noise = f"{mine.ece_if_calibrated:.3f}, at most {mine.ece_limit:.3f}"
    return [
        ("ECE, bins of equal width", f"{mine.ece:.3f}", _of(base, "ece"), shift),
        ("  of a calibrated model", noise, None, None),
        ("ECE, bins of equal count", f"{mine.ece_mass:.3f}", _of(base, "ece_mass"), None),
    ]


def _of(found: Any, name: str) -> str | None:
    """A field of a result that may not be there, without its interval."""
    value = None if found is None else getattr(found, name)
    value = getattr(value, "value", value)
    return None if value is None else f"{value:.3f}"


def _percent(rate: Rate) -> str | None:
    return None if rate.rate is None else f"{100 * rate.rate:.1f} %"


def _share(rate: Rate) -> str | None:
    return f"{_percent(rate)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _verdict(found: Reliability, words: Words) -> str:
    p = "p < 0.001" if found.p_calibrated < 0.001 else f"p = {found.p_calibrated:.3f}"
    return f"{_word(found, words)} ({p})"


def _word(found: Reliability, words: Words) -> str:
    return words.verdicts.get(found.verdict, found.verdict)


def figure(result: CalibrationResult) -> Figure:
    """Reliability diagrams over histograms; without labels, the first token's confidence."""
    panels: list[tuple[Words, Reliability, Reliability | None]] = []
    if (asked := result.labelled) is not None:
        panels.append((ANSWERS, asked.top, asked.baseline))
    if (refusal := result.refusal) is not None:
        panels.append((REFUSALS, refusal.predicted, refusal.baseline))
    shifted = result.first_token.confidence is not None
    columns = len(panels) + shifted
    width = {1: 7.2, 2: 9.2}.get(max(columns, 1), 13.2)
    fig = Figure(figsize=(width, 6.0), dpi=100, layout="constrained")
    if panels:
        grid = fig.subplots(
            2, columns, squeeze=False, sharex="col", gridspec_kw={"height_ratios": [4, 1]}
        )
        if shifted:
            _confidence(grid[0, -1], result)
            grid[1, -1].remove()
            grid[0, -1].tick_params(labelbottom=True)
        for column, (words, mine, base) in enumerate(panels):
            _reliability(grid[0, column], words, mine, base)
            _counts(grid[1, column], words, mine, base)
    else:
        _confidence(fig.subplots(), result)
    for panel in fig.axes:
        panel.spines[["top", "right"]].set_visible(False)
    versus = f"\nagainst {cell_name(result.baseline)}" if result.baseline else ""
    fig.suptitle(f"Calibration probe: {cell_name(result.cell)}{versus}", fontsize=11)
    return fig


def _sides(mine: Reliability, base: Reliability | None) -> list[tuple[str, Reliability, str]]:
    before = [("baseline", base, "s")] if base is not None else []
    return [*before, ("cell", mine, "o")]


def _reliability(axes: Axes, words: Words, mine: Reliability, base: Reliability | None) -> None:
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="calibrated")
    for name, found, marker in _sides(mine, base):
        ece, limit = beside_limit(found.ece, found.ece_limit)
        label = f"{name}: ECE {ece} (sampling noise: up to {limit})"
        # bins of a handful of prompts are shown, and faded
        for few in (False, True):
            parts = [part for part in found.bins_width if (part.outcome.n < FEW) == few]
            y = np.array([part.outcome.rate for part in parts], float)
            low = np.array([part.outcome.low for part in parts], float)
            high = np.array([part.outcome.high for part in parts], float)
            axes.errorbar(
                [part.probability for part in parts],
                y,
                # Wilson's bounds may miss a share of 0 or 1 by rounding
                yerr=np.maximum([y - low, high - y], 0),
                color=COLOURS[name],
                marker=marker,
                markersize=4 if few else 7,
                linestyle="none",
                elinewidth=1,
                alpha=0.3 if few else 0.9,
                label=None if few else label,
            )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.28), yticks=np.linspace(0, 1, 6))
    axes.set_ylabel(words.outcome)
    axes.set_title(f"{words.title}\ncell: {_verdict(mine, words)}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False)


def beside_limit(value: float, limit: float) -> tuple[str, str]:
    """Both with three decimals, or as many as show that the value is beyond its limit."""
    digits = 3
    while value > limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}" and digits < 9:
        digits += 1
    return f"{value:.{digits}f}", f"{limit:.{digits}f}"


def _counts(axes: Axes, words: Words, mine: Reliability, base: Reliability | None) -> None:
    for name, found, _ in _sides(mine, base):
        axes.hist(
            [part.probability for part in found.bins_width],
            weights=[part.outcome.n for part in found.bins_width],
            bins=np.linspace(0, 1, BINS + 1).tolist(),
            histtype="stepfilled" if name == "baseline" else "step",
            color=COLOURS[name],
            alpha=0.5 if name == "baseline" else 1,
            linewidth=1.6,
        )
    axes.set_xlabel(words.probability)
    axes.set_ylabel(f"{words.unit}\n(n = {mine.n})")


def _confidence(axes: Axes, result: CalibrationResult) -> None:
    first = result.first_token
    for name, key in (("baseline", "baseline_top1"), ("cell", "top1")):
        if values := first.per_prompt.get(key):
            axes.ecdf(values, color=COLOURS[name], linewidth=2, label=f"{name} (n = {first.n})")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_xlabel("probability of the most probable first token, harmful prompts")
    axes.set_ylabel("share of prompts at or below")
    if first.confidence:
        axes.set_title(f"first token\ncell: confidence {first.confidence}", fontsize=10)
    axes.legend(loc="upper left", fontsize=9)
