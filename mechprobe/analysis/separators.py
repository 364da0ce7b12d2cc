"""Does any probe metric tell the dangerous rows from the rest?

Every probe metric over the rows that are no baselines: how it goes with RTSI and with the
refusal-rate delta (Pearson, Spearman), and how it separates danger from the rest, and danger that
quality hides from the rest (Mann-Whitney U, ROC-AUC). Source of the question:
arXiv 2606.10154, whose probes were weak or null separators of 10 rows in 17 cells.

Correlations and AUC are over all rows together, and their intervals take rows as independent, which
rows of one model are not. The p-values do not: they come from permutation within model, adjusted
after Holm over the metrics. The band beside each AUC is where 95 % of those permutations lie, and
`auc_within` counts pairs of rows of one model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechprobe.analysis.grouped import LEAST, FloatArray, Groups, varies
from mechprobe.analysis.paired import holm
from mechprobe.analysis.separating import Correlated, Separated, correlate, divide
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

METRICS = (
    "entropy_harmful",
    "entropy_shift",
    "entropy_harmless",
    "entropy_harmless_shift",
    "first_token_kl",
    "first_token_flips",
    "refusal_log_odds",
    "refusal_margin_lost",
    "direction_norm",
    "direction_norm_ratio",
    "direction_cosine",
    "direction_auc",
    "direction_dprime",
    "direction_auc_on_baseline",
    "direction_angle",
    "harmful_refusal_ablated",
    "harmless_refusal_added",
    "top1_harmful",
    "top1_shift",
    "top5_harmful",
    "gini_harmful",
    "logit_range_harmful",
    "entropy_proxy_ece",
    "ece",
    "labelled_brier",
    "labelled_nll",
    "labelled_auroc",
    "true_answer_shift",
    "refusal_ece",
    "refusal_auroc",
    "refusal_brier",
    "neurons_study_ratio",
    "neurons_ratio",
    "neurons_weight_ratio",
    "neurons_mlp_unadjusted",
    "neurons_mlp_ratio",
    "patching_returned",
    "patching_excess",
    "patching_mlp_returned",
)
"""What the probes say of a row; refusal rates without intervention are behaviour, and not here."""
Outcome = Literal["rtsi", "refusal", "danger", "hidden"]
GRADED: tuple[Outcome, ...] = ("rtsi", "refusal")
SIDES: tuple[Outcome, ...] = ("danger", "hidden")
OUTCOMES = GRADED + SIDES
_SAID = {"danger": "danger", "hidden": "hidden danger"}
SAMPLED, SAMPLED_LARGE, LARGE = 9_999, 1_999, 2_000
"""Permutations drawn, and how many where there are more than `LARGE` rows."""


def separators_section(
    matrix: pd.DataFrame,
    outcomes: pd.DataFrame,
    *,
    metrics: Sequence[str] = METRICS,
    permutations: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The section `separators` of an analysis document, of plain JSON values.

    Args:
        matrix: `model, cell` (or `precision, engine`), and the metrics there are.
        outcomes: One row per row of the matrix that is no baseline: `model, cell`; `refusal`, its
            refusal-rate delta in points; `danger`, whether refusals were lost, and `hidden`,
            whether they were and quality hides it (1, 0); `rtsi`, its score. NaN where that was
            not measured; a column may be absent.
        metrics: Columns to test; those that the matrix lacks are `not measured`.
        permutations: Drawn where not all can be counted; by default 9,999, and 1,999 of more than
            2,000 rows.
        seed: Of the draws.

    Returns:
        `metrics`: a list of `{metric, rtsi, refusal, danger, hidden}`, those that separate danger
        best first; `{"not_measured": reason}` alone where no row has an outcome.

    Raises:
        TableError: A column is missing, or a cell stands there twice.
    """
    rows = _joined(matrix, outcomes)
    if rows.empty:
        return {"not_measured": "no row of the matrix has a baseline"}
    found = separate(rows, metrics, permutations=permutations, seed=seed)
    listed = [
        {"metric": name, **{key: asdict(one) for key, one in parts.items()}}
        for name, parts in found.items()
    ]
    return {
        "rows": len(rows),
        "models": int(rows["model"].nunique()),
        "permutations": permutations or _permutations(len(rows)),
        "seed": seed,
        "about": "p: permutation within model, Holm over the metrics; intervals: rows taken as "
        "independent",
        "metrics": sorted(listed, key=_place),
    }


def separate(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    *,
    permutations: int | None = None,
    seed: int = 0,
) -> dict[str, dict[Outcome, Correlated | Separated]]:
    """Test every metric against every outcome.

    Args:
        rows: `model`, the metrics and the `OUTCOMES`; NaN where not measured.
        metrics: Columns to test.
        permutations: As for `separators_section`.
        seed: Of the draws.
    """
    values = {name: _column(rows, name) for name in metrics}
    models = rows["model"].to_numpy()
    found: dict[str, dict[Outcome, Correlated | Separated]] = {name: {} for name in metrics}
    for outcome in OUTCOMES:
        target = _column(rows, outcome)
        together: dict[bytes, list[str]] = {}
        for name in metrics:
            there = np.isfinite(values[name]) & np.isfinite(target)
            reason = _unfit(values[name][there], target[there], outcome, name in rows)
            if reason:
                found[name][outcome] = _missing(outcome, int(there.sum()), reason)
            else:
                together.setdefault(there.tobytes(), []).append(name)
        for pattern, names in together.items():
            there = np.frombuffer(pattern, np.bool_)
            groups = Groups.of(models[there])
            tested = np.stack([values[name][there] for name in names], axis=1)
            draws = permutations or _permutations(len(tested))
            results: Sequence[Correlated | Separated] = (
                correlate(tested, target[there], groups, draws, seed)
                if outcome in GRADED
                else divide(tested, target[there], groups, draws, seed)
            )
            for name, result in zip(names, results, strict=True):
                found[name][outcome] = result
        if metrics:
            _adjust(found, outcome)
    return found


def _joined(matrix: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    if "cell" not in matrix:
        matrix = matrix.assign(cell=matrix["precision"] + "@" + matrix["engine"])
    for name, table in (("matrix", matrix), ("outcomes", outcomes)):
        if missing := [key for key in ("model", "cell") if key not in table]:
            raise TableError(f"{name}: no column {missing[0]!r}")
        if table.duplicated(["model", "cell"]).any():
            at = table[table.duplicated(["model", "cell"])].iloc[0]
            raise TableError(f"{name}: {at['model']}/{at['cell']} stands there twice")
    here = outcomes[["model", "cell", *(name for name in OUTCOMES if name in outcomes)]]
    kept = [name for name in matrix if name not in OUTCOMES]
    return matrix[kept].merge(here, on=["model", "cell"])


def _column(rows: pd.DataFrame, name: str) -> FloatArray:
    if name not in rows:
        return np.full(len(rows), np.nan)
    try:
        return np.asarray(rows[name].to_numpy(np.float64, na_value=np.nan), np.float64)
    except (ValueError, TypeError) as error:
        raise TableError(f"matrix: column {name!r} holds what is no number") from error


def _permutations(rows: int) -> int:
    return SAMPLED_LARGE if rows > LARGE else SAMPLED


def _unfit(x: FloatArray, y: FloatArray, outcome: Outcome, named: bool) -> str | None:
    if not named:
        return "the matrix has no such column"
    if len(x) < LEAST:
        return f"{len(x)} rows have both; at least {LEAST} needed"
    if not varies(x.min(), x.max()):
        return "the metric is the same in every row"
    if not varies(y.min(), y.max()):
        return (
            f"{outcome} is the same in every row" if outcome in GRADED
            else f"every row is {'' if y[0] else 'no '}{_SAID[outcome]}"
        )  # fmt: skip
    return None


def _missing(outcome: Outcome, n: int, reason: str) -> Correlated | Separated:
    kind = Correlated if outcome in GRADED else Separated
    return kind(n, not_measured=reason)


def _adjust(found: dict[str, dict[Outcome, Correlated | Separated]], outcome: Outcome) -> None:
    """Put Holm's p beside each p, over the metrics."""
    rows = [row[outcome] for row in found.values()]
    adjusted = [_holm([one.tests()[k] for one in rows]) for k in range(len(rows[0].tests()))]
    for row, p in zip(found.values(), zip(*adjusted, strict=True), strict=True):
        row[outcome] = row[outcome].adjusted(*p)


def _holm(given: Sequence[float | None]) -> list[float | None]:
    found = holm([np.nan if p is None else p for p in given])
    return [float(p) if np.isfinite(p) else None for p in found]


def _place(one: Mapping[str, Any]) -> tuple[float, float, str]:
    """Smallest p for danger first, then the AUC furthest from 0.5; unmeasured last."""
    danger = one["danger"]
    p = 2.0 if danger["p"] is None else danger["p"]
    return p, -abs((danger["auc"] or 0.5) - 0.5), one["metric"]
