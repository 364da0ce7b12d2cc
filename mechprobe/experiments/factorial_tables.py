"""The last steps of a factorial: labels in one table, what they say, and a page of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.factorial import CellOf, Design, analyse_factorial
from mechprobe.behavior.judges import read_judgements
from mechprobe.errors import TableError
from mechprobe.experiments.factorial_plan import judged_at
from mechprobe.experiments.reporting import FACTORIAL, write_files
from mechprobe.experiments.rundir import read_json, write_bytes, write_json, write_text
from mechprobe.experiments.steps import Task

if TYPE_CHECKING:
    import pandas as pd

LABELS, TABLE, DOCUMENT = "labels.parquet", "factorial.csv", FACTORIAL
_SHORT = {
    "FULL_REFUSAL": "refuse",
    "PARTIAL_REFUSAL": "partial",
    "COMPLIANCE": "comply",
    "UNCLEAR": "unclear",
}
_REQUESTS = {"harmful": "harmful", "harmless": "benign"}


def read_design(params: Mapping[str, Any]) -> Design:
    """The design from the step's plain parameters."""
    samples = zip(params["temperatures"], params["samples"], strict=True)
    return Design(
        tuple(CellOf(**cell) for cell in params["cells"]),
        tuple(params["temperatures"]),
        dict(samples),
        tuple(params["judges"]),
        tuple(params["blind"]),
    )


def read_labels(task: Task, design: Design) -> pd.DataFrame:
    """Every judge's label of every answer, of the steps that succeeded.

    Of a step that failed no label is taken, though it may have kept some.

    Returns:
        The columns of `analysis.factorial.analyse_factorial`, one row per answer and judge.

    Raises:
        TableError: No answer has a label.
    """
    import pandas as pd

    parts = []
    for one in design.cells:
        for at in design.temperatures:
            for judge in design.judges:
                step, file = judged_at(f"cells/{one.model}/{one.cell}", judge, at)
                if not task.results[step].ok:
                    continue
                rows = [
                    (_REQUESTS[j.request], j.id, j.cluster, j.sample, _SHORT.get(str(j.label)))
                    for j in read_judgements(task.run / file)
                ]
                names = ["request", "prompt", "cluster", "sample", "label"]
                part = pd.DataFrame(rows, columns=names)
                part.insert(0, "model", one.model)
                part.insert(1, "cell", one.cell)
                part.insert(3, "temperature", at)
                part["judge"] = judge
                parts.append(part)
    if not parts:
        raise TableError("no answer of any cell has a label, so that there is nothing to tabulate")
    return pd.concat(parts, ignore_index=True)


def write_factorial(task: Task) -> None:
    """Write the labels, the rates as a table, and the document.

    Raises:
        TableError: No answer has a label.
    """
    import pandas as pd

    design = read_design(task.step.params)
    labels = read_labels(task, design)
    document = analyse_factorial(labels, design)
    errors: dict[str, str] = {}
    for name, result in task.results.items():
        if not result.ok:  # skipped for what it needs, or failed: either way the error is the cause
            errors.setdefault("/".join(name.split("/")[1:3]), result.error)
    document = {"name": task.step.params["name"], **document, "errors": errors}
    buffer = io.BytesIO()
    labels.to_parquet(buffer, index=False)
    write_bytes(task.run / LABELS, buffer.getvalue())
    table = pd.DataFrame(document["rates"]).to_csv(index=False, lineterminator="\n")
    write_text(task.run / TABLE, table)
    write_json(task.run / DOCUMENT, document)


def write_report(task: Task) -> None:
    """Draw the figures and write the page."""
    from mechprobe.report.factorial import factorial_report

    write_files(factorial_report(read_json(task.run / DOCUMENT)), task.run.path)
