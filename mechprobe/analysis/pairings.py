"""The quality-safety pairings: does quality tell anything of safety, and the same in every model?

Three quality metrics, three safety metrics, each of these by two readings (instruments), over the
values themselves and over what they moved by from the baseline: 36 pairings. A pairing *splits*
where its correlations within models take both signs; quality is then a proxy in one model and the
opposite in another. Source: arXiv 2606.10154. A metric that a matrix lacks leaves its pairings
`not measured`; it is never replaced by another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechprobe.analysis.coupling import couple
from mechprobe.analysis.deltas import KEYS, pair
from mechprobe.analysis.grouped import LEAST, Groups, varies
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

VALUES = ("model", "cell", "precision", "measure", "instrument", "raw", "delta")
Form = Literal["raw", "delta"]
FORMS: tuple[Form, ...] = ("raw", "delta")
READINGS = ("first", "second")
_QUALITY = {
    "BERTScore": ("_quality$", "^bertscore"),
    "ROUGE-L": ("_quality$", "^rouge_l"),
    "coherence": ("_quality$", "^coherence"),
}
"""Which measure and which instrument, as regular expressions."""
_SAFETY = {
    "refusal": ("^refusal$", ""),
    "truthfulness": ("_(mc2|mc1|truthful_rate)$", ""),
    "bias": ("_accuracy_ambiguous$", ""),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A measure of the outcomes as one instrument reads it."""

    measure: str
    instrument: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One side of a pairing, under the name that it is shown by."""

    name: str
    readings: tuple[Reading, ...]
    """Of quality the first one counts, of safety the first two; none where a matrix lacks it."""


def metrics_of(
    values: pd.DataFrame, refusal: Sequence[str] = ()
) -> tuple[list[Metric], list[Metric]]:
    """The study's three quality and three safety metrics, as far as a matrix has them.

    Args:
        values: With `measure, instrument`.
        refusal: The first and second instrument of refusal; by default those that come first.
    """
    there = [
        Reading(str(measure), str(name))
        for measure, name in values[["measure", "instrument"]].drop_duplicates().to_numpy()
    ]
    rank = {name: place for place, name in enumerate(refusal)}

    def found(name: str, measure: str, instrument: str) -> Metric:
        fits = [
            one
            for one in there
            if re.search(measure, one.measure) and re.search(instrument, one.instrument)
        ]
        if name == "refusal" and refusal:
            fits = sorted(
                (o for o in fits if o.instrument in rank), key=lambda o: rank[o.instrument]
            )
        return Metric(name, tuple(fits))

    return tuple(  # type: ignore[return-value]
        [found(name, *how) for name, how in side.items()] for side in (_QUALITY, _SAFETY)
    )


def values_of(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The mean of every measure in every row of a matrix, and what it moved by from the baseline.

    Args:
        outcomes: One line per model, cell, measure, instrument and prompt; baselines that were
            added as references (`reference`) are no rows of the matrix.

    Returns:
        The columns `VALUES`; `raw` over the prompts that could be read, `delta` over those that
        could be read in the baseline too, NaN for a baseline.
    """
    keys = list(KEYS)
    table = pair(outcomes, resamples=1).table
    moved = (table["after_sum"] - table["before_sum"]) / table["n"].where(table["n"] > 0)
    deltas = table[keys].assign(delta=moved)
    mine = outcomes[~outcomes["reference"].astype(bool)] if "reference" in outcomes else outcomes
    raw = (
        mine.groupby([*keys, "precision"], sort=False, observed=True)["value"].mean().reset_index()
    )
    return raw.rename(columns={"value": "raw"}).merge(deltas, on=keys, how="left")[list(VALUES)]


def pairings_section(
    outcomes: pd.DataFrame, *, instrument: str | None = None, second: str | None = None
) -> dict[str, Any]:
    """The section `pairings` of an analysis document, of plain JSON values.

    Args:
        outcomes: As `values_of` takes them.
        instrument: Of refusal; the first of the outcomes by default.
        second: The other one of refusal.
    """
    values = values_of(outcomes)
    named = [name for name in (instrument, second) if name]
    return section_of(values, *metrics_of(values, named if instrument else ()))


def section_of(
    values: pd.DataFrame, quality: Sequence[Metric], safety: Sequence[Metric]
) -> dict[str, Any]:
    """`pairings_section` of metrics that the caller names.

    Args:
        values: The columns `VALUES`, one line per row of the matrix, measure and instrument.
        quality: One side.
        safety: The other; each is read by two instruments.

    Returns:
        `pairings`, a list in the order quality, safety, reading, form; how many were `measured`
        and how many of these `split`.

    Raises:
        TableError: A column is missing, or a cell has two values of one measure.
    """
    if missing := [name for name in VALUES if name not in values]:
        raise TableError(f"values: no column {missing[0]!r}")
    if values.duplicated(["model", "cell", "measure", "instrument"]).any():
        raise TableError("values: a cell has two values of one measure by one instrument")
    sides = ["measure", "instrument"]
    wide = {
        form: values.pivot(index=["model", "cell", "precision"], columns=sides, values=form)
        for form in FORMS
    }
    found = [
        {
            "quality": one.name,
            "safety": other.name,
            "reading": reading,
            "form": form,
            **_pairing(wide[form], one, other, place),
        }
        for one in quality
        for other in safety
        for place, reading in enumerate(READINGS)
        for form in FORMS
    ]
    known = [one for one in found if one["not_measured"] is None]
    return {
        "pairings": found,
        "total": len(found),
        "measured": len(known),
        "comparable": sum(one["splits"] is not None for one in known),
        "split": sum(one["splits"] is True for one in known),
        "models": int(values["model"].nunique()),
    }


def _pairing(wide: pd.DataFrame, quality: Metric, safety: Metric, place: int) -> dict[str, Any]:
    sides = (quality.readings[:1], safety.readings[place : place + 1])
    about = {
        f"{name}_{field}": getattr(side[0], field) if side else None
        for name, side in zip(("quality", "safety"), sides, strict=True)
        for field in ("measure", "instrument")
    }
    if not sides[0]:
        return {**about, "not_measured": f"the matrix has no {quality.name}"}
    if not sides[1]:
        several = f"{safety.name} was read by one instrument"
        lacks = f"the matrix has no {safety.name}"
        return {**about, "not_measured": several if safety.readings else lacks}
    x, y = (np.asarray(wide[(side[0].measure, side[0].instrument)], np.float64) for side in sides)
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    reason = _unfit(x, y)
    if reason:
        return {**about, "n": len(x), "not_measured": reason}
    index = wide.index[there]
    models, precisions = (Groups.of(index.get_level_values(k)) for k in ("model", "precision"))
    return {**about, **couple(x, y, models, precisions).as_dict(), "not_measured": None}


def _unfit(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> str | None:
    if len(x) < LEAST:
        return f"{len(x)} rows have both; at least {LEAST} needed"
    for name, side in (("quality", x), ("safety", y)):
        if not varies(side.min(), side.max()):
            return f"{name} is the same in every row"
    return None
