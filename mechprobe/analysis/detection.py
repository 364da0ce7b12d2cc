"""What the numbers of prompts in a table can and cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mechprobe.analysis import paired
from mechprobe.analysis.rows import Delta, Key, plain


def detection(
    deltas: Mapping[Key, Mapping[str, Delta]], instruments: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry per measure that has a delta, as the instrument that counts reads it."""
    by_measure: dict[str, list[Delta]] = {}
    for (_, _, measure), some in deltas.items():
        one = some.get(instruments.get(measure, ""))
        if one and one.n and one.tost_p is not None:
            by_measure.setdefault(measure, []).append(one)
    return [_entry(measure, some) for measure, some in by_measure.items()]


def _entry(measure: str, some: list[Delta]) -> dict[str, Any]:
    sizes = [one.n or 0 for one in some]
    binary = some[0].kind == "binary"
    independent = min(one.clusters or 0 for one in some)
    best = 100 * float(paired.detectable_fall([independent], [0])[0])
    adjusted = [one.mcnemar_p_holm for one in some if one.mcnemar_p_holm is not None]
    return {
        "measure": measure,
        "instrument": some[0].instrument,
        "kind": some[0].kind,
        "rows": len(some),
        "n_min": min(sizes),
        "n_max": max(sizes),
        "clusters_min": independent,
        "mde_points": plain(best) if binary else None,
        "mde_points_median": _median([one.mde_points for one in some]),
        "smallest_margin_median": _median([one.smallest_margin for one in some]),
        "equivalence_discordance": (
            plain(float(paired.equivalence_discordance(independent))) if binary else None
        ),
        "rows_changed": sum(p <= paired.ALPHA for p in adjusted) if binary else None,
        "rows_equivalent": sum(bool(one.equivalent) for one in some),
    }


def _median(values: list[float | None]) -> float | None:
    there = [x for x in values if x is not None]
    return plain(float(np.median(there))) if there else None
