"""Which candidate is *the* refusal direction: a pure function over a table of scores.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3, appendix C and the code they published.
The filters carry the method: without them one published model would pick layer 1, with a KL of 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechprobe.errors import MechprobeError, SpecError

if TYPE_CHECKING:
    import pandas as pd

KL_THRESHOLD = 0.1
"""A candidate whose ablation changes harmless prompts by more (nats) is dropped."""
INDUCE_THRESHOLD = 0.0
"""A candidate whose addition leaves the mean refusal log-odds of harmless prompts below is too."""
KEPT_DEPTH = 0.8
"""Layers from `int(KEPT_DEPTH * n_layers)` on are too close to the output to say anything."""
COLUMNS = ("position", "layer", "bypass", "induce", "kl")
REASONS = ("nan", "layer", "kl", "induce", "bypass")
"""The filters in the order in which they are applied; a candidate is dropped by its first. The last
one is not to have the lowest bypass for certain, before all of it is known."""


class NoCandidateError(MechprobeError):
    """The filters took every candidate; `table` says which took which."""

    def __init__(self, message: str, table: pd.DataFrame) -> None:
        super().__init__(message)
        self.table = table


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The candidate that the rule selects, and what became of the others."""

    position: int
    """Counted from the end of the prompt."""
    layer: int
    """The block whose input carries the direction."""
    bypass: float
    """Mean refusal log-odds (nats) of harmful prompts with the direction ablated."""
    induce: float
    """Mean refusal log-odds (nats) of harmless prompts with the direction added."""
    kl: float
    """Mean KL(base ‖ ablated) in nats of harmless prompts."""
    table: pd.DataFrame
    """Every candidate in the order of ties, with the filter that took it as `dropped`, or ''."""


def select_direction(
    scores: pd.DataFrame,
    n_layers: int,
    *,
    kl_threshold: float = KL_THRESHOLD,
    induce_threshold: float = INDUCE_THRESHOLD,
) -> Selection:
    """The candidate with the lowest bypass score among those that no filter takes.

    Taken out, in this order: a NaN among the three scores; `layer >= int(0.8 * n_layers)`;
    `kl > kl_threshold`; `induce < induce_threshold`. Among equal bypass scores the first wins,
    positions from -n to -1 outside, layers from the first inside, whatever the order of the rows.

    Args:
        scores: One row per candidate; columns position, layer, bypass, induce, kl. One that is out
            before its scores are known has one of `REASONS` in a column `out`, '' the others. Other
            columns are kept in the table and not looked at.
        n_layers: Of the model.
        kl_threshold: In nats.
        induce_threshold: In nats.

    Raises:
        SpecError: A column is missing.
        NoCandidateError: No candidate is left; the message says which filter took how many.
    """
    if missing := [name for name in COLUMNS if name not in scores.columns]:
        raise SpecError(f"scores lack the columns {missing}; needed are {', '.join(COLUMNS)}")
    table = scores.sort_values(["position", "layer"], kind="stable").reset_index(drop=True)
    layer, bypass, induce, kl = (
        table[name].to_numpy(np.float64, na_value=np.nan)
        for name in ("layer", "bypass", "induce", "kl")
    )
    out = table.pop("out").to_numpy(str) if "out" in table else np.full(len(table), "")
    table["dropped"] = np.select(
        [
            (np.isnan(bypass) | np.isnan(induce) | np.isnan(kl)) & (out == ""),
            (layer >= int(KEPT_DEPTH * n_layers)) | (out == "layer"),
            (kl > kl_threshold) | (out == "kl"),
            (induce < induce_threshold) | (out == "induce"),
            out == "bypass",
        ],
        list(REASONS),
        default="",
    )
    kept = np.flatnonzero(table["dropped"] == "")
    if not len(kept):
        limits = {
            "nan": "no number among the scores",
            "layer": f"layer {int(KEPT_DEPTH * n_layers)} or later",
            "kl": f"KL above {kl_threshold:g}",
            "induce": f"induce below {induce_threshold:g}",
        }
        took = ", ".join(f"{limits[name]}: {n}" for name, n in dropped(table).items() if n)
        raise NoCandidateError(
            f"no refusal direction: all {len(table)} candidates were dropped ({took or 'none'}); "
            "the model may not refuse by one direction, or the refusal tokens are not its own",
            table,
        )
    # argmin takes the first of equals, and the rows stand in the order of ties
    best = int(kept[np.argmin(bypass[kept])])
    return Selection(
        position=int(table["position"].iloc[best]),
        layer=int(layer[best]),
        bypass=float(bypass[best]),
        induce=float(induce[best]),
        kl=float(kl[best]),
        table=table,
    )


def dropped(table: pd.DataFrame) -> dict[str, int]:
    """How many candidates each filter took."""
    return {name: int((table["dropped"] == name).sum()) for name in REASONS}
