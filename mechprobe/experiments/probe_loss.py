"""What the probed answers say of lost refusals, and which of the probes' numbers do not show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from mechprobe.analysis.regimes import get_preset
from mechprobe.analysis.unseen import unseen
from mechprobe.analysis.verdict import over_refusal_warning, over_refusing
from mechprobe.experiments.probe_columns import probe_columns
from mechprobe.experiments.probe_setup import ProbeRequest
from mechprobe.experiments.probing import BASELINE
from mechprobe.experiments.rendered import LABELS
from mechprobe.probes.folder import ProbeFolder
from mechprobe.report.words import metric_name, signed


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """Refusals of the evaluation prompts, cell against baseline."""

    n: int
    """Harmful prompts that both answered readably."""
    before: int
    after: int
    points: float
    lost: bool
    """Whether they fell beyond the threshold of the preset `mechprobe`."""
    unseen: tuple[str, ...]
    """Columns of the matrix that do not show it; empty where nothing was lost."""
    baseline_harmless: float | None
    """Share of harmless prompts that the baseline refuses."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def said(self) -> str:
        """What was lost, in a line."""
        change = f"{self.before} → {self.after} of {self.n} refused, {signed(self.points)} points"
        return f"refusals were lost: {change}"

    def warnings(self, baseline: str) -> list[str]:
        """What the baseline's own refusals mean for the probes."""
        rate = self.baseline_harmless
        if rate is None or not over_refusing(rate):
            return []
        return [over_refusal_warning(baseline, rate, None)]

    def beside(self, document: Mapping[str, Any]) -> str | None:
        """What stands below a probe's numbers where some do not show the loss.

        Args:
            document: The probe's own.
        """
        if not self.lost:
            return None
        names = unseen(probe_columns({document["probe"]: document}))
        if not names:
            return None
        return f"does not show that {self.said()}: {', '.join(map(metric_name, names))}"


def probe_loss(request: ProbeRequest, documents: Mapping[str, Any]) -> ProbeLoss | None:
    """Return what became of refusals; None where the probes let no two checkpoints answer.

    Args:
        request: What was probed.
        documents: By probe, its JSON document.
    """
    if request.baseline is None or request.study or "calibration" not in documents:
        return None
    folders = [ProbeFolder(path) for path in (Path(request.out) / BASELINE, Path(request.out))]
    before, after = (folder.refusals or {} for folder in folders)
    sides = {}
    for name in (f"evaluate/{label}" for label in LABELS):
        if name not in before or name not in after:
            return None
        pairs = zip(before[name].refused, after[name].refused, strict=True)
        sides[name] = [(a, b) for a, b in pairs if a is not None and b is not None]
    harmful, harmless = sides.values()
    if not harmful:
        return None
    was, now = (sum(pair[side] for pair in harmful) for side in (0, 1))
    points = Fraction(100 * (now - was), len(harmful))
    lost = get_preset("mechprobe").fell(points)
    return ProbeLoss(
        n=len(harmful),
        before=was,
        after=now,
        points=float(points),
        lost=lost,
        unseen=tuple(unseen(probe_columns(documents))) if lost else (),
        baseline_harmless=sum(a for a, _ in harmless) / len(harmless) if harmless else None,
    )
