"""Asymmetry: how often refusal moved further than quality.

Source: arXiv 2606.10154, which finds safety the faster one to move in most rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechprobe import stats
from mechprobe.analysis.regimes import Exact


@dataclass(frozen=True, slots=True)
class Asymmetry:
    """Rows in which |ΔR| > |ΔQ|, among those with both deltas."""

    n: int
    faster: int
    ties: int
    """Rows that moved equally far: not faster."""
    not_paired: int
    """Rows that lack a delta, and are in no share."""
    share: float | None
    low: float
    high: float
    """Wilson's 95 % interval of the share; rows of one model are alike, so it is too narrow."""
    by_model: tuple[tuple[str, int, int], ...]
    """Model, rows, and in how many of them refusal moved further."""


def asymmetry(
    models: Sequence[str], quality: Sequence[Exact], refusal: Sequence[Exact]
) -> Asymmetry:
    """Count the rows in which refusal moved further than quality.

    Args:
        models: Of each row that has a baseline.
        quality: Its change of quality in points, exact; None where it was not measured.
        refusal: Its change of refusal in points.
    """
    both = [
        (model, abs(r) - abs(q))
        for model, q, r in zip(models, quality, refusal, strict=True)
        if q is not None and r is not None
    ]
    n, faster = len(both), sum(by > 0 for _, by in both)
    low, high = stats.wilson(faster, n)
    groups: dict[str, list[bool]] = {}
    for model, by in both:
        groups.setdefault(model, []).append(by > 0)
    return Asymmetry(
        n=n,
        faster=faster,
        ties=sum(by == 0 for _, by in both),
        not_paired=len(models) - n,
        share=faster / n if n else None,
        low=low,
        high=high,
        by_model=tuple((model, len(some), sum(some)) for model, some in groups.items()),
    )
