"""The analysis of a matrix as one document; docs/analysis.md says what each field is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.deltas import pair
from mechprobe.analysis.detection import detection
from mechprobe.analysis.instruments import compare_instruments
from mechprobe.analysis.joined import joined_sections
from mechprobe.analysis.matrix import Matrix, matrix_rows
from mechprobe.analysis.paired import ALPHA, CONFIDENCE, EQUIVALENCE_POINTS, POWER
from mechprobe.analysis.regimes import get_preset
from mechprobe.analysis.rows import (
    REFUSAL,
    Choice,
    paired_deltas,
    plain,
    primary_instruments,
    row_frequencies,
)
from mechprobe.analysis.sections import (
    agreement_section,
    asymmetry_section,
    not_measured_section,
    preset_section,
    regimes_section,
    row_sections,
)
from mechprobe.analysis.summary import summary
from mechprobe.analysis.unseen import add_unseen
from mechprobe.analysis.verdict import HARMLESS_COLUMNS, verdict
from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
"""Raised when a field is added or changes its meaning."""


def analyse(
    outcomes: pd.DataFrame,
    matrix: pd.DataFrame,
    templates: pd.DataFrame | None = None,
    gaps: pd.DataFrame | None = None,
    *,
    absent: Mapping[str, str] | None = None,
    preset: str = "mechprobe",
    strict: bool = True,
    quality: str | None = None,
    instrument: str | None = None,
    second_instrument: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Analyse a matrix of which every outcome is known, prompt by prompt.

    Args:
        outcomes: One line per model, cell, measure, instrument and prompt; see `deltas.OUTCOMES`.
        matrix: One line per cell of the matrix: `model, precision, engine, baseline`, and more.
        templates: How each cell words its refusals; see `templates.drift`.
        gaps: Kernel and engine gaps, for the document.
        absent: What was asked for and not measured, and why.
        preset: Name of the thresholds.
        strict: Whether a fall must be beyond its threshold, not at it.
        quality: The measure that is quality.
        instrument: Of refusal; the first of the outcomes by default.
        second_instrument: Another one of refusal; what it has not read is not measured.
        resamples: Of every bootstrap.
        seed: Of every bootstrap.

    Returns:
        A document that JSON can hold.

    Raises:
        SpecError: The preset is unknown.
        TableError: A column is missing, or the instrument has not read the outcomes.
    """
    instruments, there = primary_instruments(outcomes, instrument)
    if instrument and instrument not in there.get(REFUSAL, [instrument]):
        raise TableError(
            f"refusal was not read by the instrument {instrument!r}; there are: "
            f"{', '.join(there[REFUSAL])}"
        )
    choice = Choice(get_preset(preset), strict, quality, instruments, second_instrument)
    of_refusal = outcomes["measure"] == REFUSAL
    references = (  # baselines that a run added are no rows of the matrix
        outcomes["reference"].astype(bool) if "reference" in outcomes else of_refusal & False
    )
    counts = outcomes["instrument"].astype(str) == outcomes["measure"].map(instruments).astype(str)
    wanted = counts | (of_refusal & (outcomes["instrument"] == second_instrument))
    deltas = pair(outcomes[wanted], resamples=resamples, seed=seed)
    known = Matrix(matrix_rows(matrix), paired_deltas(deltas), choice)
    agreement = None
    if second_instrument and REFUSAL in instruments:
        agreement = compare_instruments(
            outcomes[of_refusal & ~references],
            instruments[REFUSAL],
            second_instrument,
        )
    frequency = row_frequencies(deltas, known.primary(quality), known.primary(REFUSAL), choice)
    parameters = {"resamples": resamples, "seed": seed}
    whole = Matrix(known.rows, known.deltas, choice, frequency, agreement, parameters, absent or {})
    return document(whole, matrix, outcomes, templates, gaps)


def document(
    matrix: Matrix,
    frame: pd.DataFrame,
    outcomes: pd.DataFrame | None = None,
    templates: pd.DataFrame | None = None,
    gaps: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """The document of rows and deltas that were measured here or elsewhere.

    Args:
        matrix: Rows and deltas.
        frame: The table that the rows come from, for what the probes say.
        outcomes: By prompt, as for `analyse`.
        templates: How refusals are worded.
        gaps: Kernel and engine gaps.
    """
    rows = row_sections(matrix)
    add_unseen(rows, frame)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "preset": preset_section(matrix.choice),
        "parameters": {
            **matrix.parameters,
            "confidence": CONFIDENCE,
            "alpha": ALPHA,
            "power": POWER,
            "equivalence_points": EQUIVALENCE_POINTS,
        },
        "detection": detection(matrix.deltas, matrix.choice.instruments),
        "rows": rows,
        "verdict": verdict(rows, _records(frame.filter(items=HARMLESS_COLUMNS))),
        "regimes": regimes_section(rows),
        "asymmetry": asymmetry_section(matrix),
        "agreement": agreement_section(matrix, rows),
        **joined_sections(matrix, rows, frame, outcomes, templates),
        "gaps": [] if gaps is None else _records(gaps),
    }
    content["not_measured"] = not_measured_section(matrix, content)
    content["summary"] = summary(content)
    return content


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): plain(value) for name, value in row.items()} for row in frame.to_dict("records")
    ]
