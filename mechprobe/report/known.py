"""What matrix.csv knows of a row: its checkpoint, its rate, and what the probes said."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.report import words

if TYPE_CHECKING:
    import pandas as pd

Known = Mapping[str, Any]
"""A row of matrix.csv by column."""

_PROBES = (
    ("refusal margin lost, nats", "refusal_margin_lost", 2),
    ("entropy shift, nats", "entropy_shift", 3),
    ("first-token KL, nats", "first_token_kl", 3),
    ("first tokens changed, share", "first_token_flips", 3),
    ("refusal direction: cosine to baseline's", "direction_cosine", 3),
    ("its noise floor", "direction_cosine_floor", 3),
    ("refusal direction: AUC", "direction_auc", 3),
    ("top-1 confidence, harmful prompts", "top1_harmful", 3),
    ("its change", "top1_shift", 3),
    ("harmful refused, direction ablated", "harmful_refusal_ablated", 2),
    ("harmless refused, direction added", "harmless_refusal_added", 2),
    ("calibration error (ECE)", "ece", 3),
    ("refusal calibration: AUROC", "refusal_auroc", 3),
    ("safety neurons: error ratio, scale-matched", "neurons_ratio", 2),
    ("layers with the baseline's weights, in no ratio", "neurons_equal_layers", 0),
    ("log-odds returned by patching, nats", "patching_returned", 2),
    ("kernel gap, mean KL", "kernel_gap_kl", 6),
)
_CHANGES = ("refusal_margin_lost", "entropy_shift", "top1_shift", "patching_returned")
"""Probes that say how far something moved, not where it stands."""
_FACTS = (
    ("checkpoint", "source"), ("weights digest", "weights"), ("method", "method"),
    ("bits per weight", "bits_per_weight"), ("warnings", "warnings"),
    ("probes that lack their main numbers", "not_measured"),
)  # fmt: skip


def known_of(
    matrix: pd.DataFrame | None, wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], Known]:
    """The rows of the matrix that are wanted, by model and cell."""
    if matrix is None:
        return {}
    cells = matrix["precision"].astype(str) + "@" + matrix["engine"].astype(str)
    keys = list(zip(matrix["model"].astype(str), cells, strict=True))
    mine = [at for at, key in enumerate(keys) if key in wanted]
    records: list[dict[Any, Any]] = matrix.iloc[mine].to_dict("records")
    return {keys[at]: record for at, record in zip(mine, records, strict=True)}


def rate_of(known: Known) -> str:
    """Harmful prompts refused, as counts; empty where that is not known."""
    n, k = known.get("harmful_refusal_n"), known.get("harmful_refusal_count")
    return f"{k:.0f} of {n:.0f}" if _there(n) and _there(k) else ""


BLIND = "does not show the loss"
"""Beside a number of a row that lost refusals, where it does not differ from no change."""


def probes_of(known: Known, unseen: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """What the probes said, by name, with intervals where there are some.

    Args:
        known: Of the matrix.
        unseen: Columns that do not show the loss of this row.
    """
    found = []
    for label, key, digits in _PROBES:
        value = known.get(key)
        if not _there(value):
            continue
        low, high = known.get(f"{key}_low"), known.get(f"{key}_high")
        known_ends = _there(low) and _there(high)
        level = key not in _CHANGES
        ends = words.interval(low, high, digits, level=level) if known_ends else ""
        shown = (words.plain if level else words.signed)(value, digits)
        blind = f" ({BLIND})" if key in unseen else ""
        found.append((label, f"{shown} {ends}".strip() + blind))
    return tuple(found)


def facts_of(known: Known) -> tuple[tuple[str, str], ...]:
    """What the checkpoint is, by name."""
    return tuple((name, _text(known[key])) for name, key in _FACTS if _there(known.get(key)))


def _there(value: Any) -> bool:
    """Whether a field of the matrix holds something."""
    if value is None or value == "":
        return False
    return not (isinstance(value, float | np.floating) and not np.isfinite(value))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
