"""The step that joins the cells of a run in tables. Loads nothing."""

from __future__ import annotations

from collections.abc import Sequence

from mechprobe.experiments.derived import code_digest
from mechprobe.experiments.plan_cells import PlannedCell
from mechprobe.experiments.steps import Step


def tables_step(cells: Sequence[PlannedCell]) -> Step:
    """Matrix, references and gaps; it reports failed cells too.

    Args:
        cells: Of all models, in the order of the spec.
    """
    rows = [
        {
            "model": one.cell.model,
            "key": one.cell.key,
            "folder": one.folder,
            "baseline": one.cell.baseline_key,
            "reference": one.reference,
        }
        for one in cells
    ]
    return Step(
        name="tables",
        action="mechprobe.experiments.matrix:write_tables",
        params={"cells": rows},
        outputs=("matrix.csv", "matrix.parquet", "references.csv", "gaps.csv"),
        after=tuple(f"{one.folder}/cell" for one in cells),
        label="tables",
        code=code_digest("tables"),
    )
