"""The report of a run: the step that writes it, and writing it anew.

Only what the page shows is read: of ten thousand rows, the answers of two hundred.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.derived import code_digest
from mechprobe.experiments.integrity import (
    FIGURES,
    PAGE,
    read_spec,
    require_recorded,
    unrecorded,
)
from mechprobe.experiments.run_rows import RefusalRow, flags, read_typed
from mechprobe.experiments.rundir import (
    RunDirectory,
    explained,
    read_json,
    write_bytes,
    write_text,
)
from mechprobe.experiments.steps import Step

if TYPE_CHECKING:
    import pandas as pd

    from mechprobe.experiments.spec import Spec
    from mechprobe.experiments.steps import Task
    from mechprobe.report import Material, Report

ANALYSIS, FACTORIAL = "analysis.json", "factorial.json"


def report_step(spec: Spec, analysis: str) -> Step:
    """The step, after that of the analysis."""
    return Step(
        name="report",
        action=f"{__name__}:write_report",
        params={"name": spec.name},
        outputs=(PAGE, FIGURES),
        needs=(analysis,),
        label="report",
        code=code_digest("report"),
    )


def write_report(task: Task) -> None:
    """Draw the figures and write the page."""
    from mechprobe.report import make_report

    material = read_material(task.run.path, task.step.params["name"])
    write_files(make_report(material), task.run.path)


def read_material(path: Path, name: str) -> Material:
    """What the report of a finished run is made from.

    Raises:
        RunDirectoryError: The analysis or a file it rests on is missing or damaged.
    """
    import pandas as pd

    from mechprobe.report import Material
    from mechprobe.report.evidence import wanted_cells

    run = RunDirectory(path)
    document = read_analysis(path)
    with explained(run / "matrix.csv"):
        matrix = pd.read_csv(run / "matrix.csv", dtype={"model": str}, low_memory=False)
    material = Material(name, document, matrix)
    return replace(material, outcomes=_answers(run, document, wanted_cells(material)))


def read_analysis(path: Path) -> dict[str, Any]:
    """analysis.json of a run; of another version, or where nothing vouches for it, derived anew.

    Raises:
        RunDirectoryError: A file that it rests on is missing, damaged or changed.
    """
    from mechprobe.analysis.document import SCHEMA
    from mechprobe.experiments.analysing import analyse_run

    if unrecorded(path) is None:
        require_recorded(path, ANALYSIS)
        if (found := read_json(path / ANALYSIS)).get("schema") == SCHEMA:
            return found

    return analyse_run(path)


def _answers(
    run: RunDirectory, document: dict[str, Any], cells: Iterable[tuple[str, str]]
) -> pd.DataFrame | None:
    """Harmful prompts of some cells and whether each was refused, as the first instrument reads."""
    import pandas as pd

    instrument = document["preset"]["instruments"]["refusal"]
    found = []
    for model, cell in cells:
        file = run.cell(model, cell) / "scores" / "refusal.jsonl"
        if not file.exists():
            continue
        for row in read_typed(file, RefusalRow):
            said = flags(file, row)
            if row["label"] == "harmful" and not row["unread"] and instrument in said:
                value = float(said[instrument])
                found.append((model, cell, "refusal", instrument, row["id"], value))
    columns = ["model", "cell", "measure", "instrument", "prompt", "value"]
    return pd.DataFrame(found, columns=columns)


def write_files(report: Report, folder: Path) -> None:
    """The figures, then the page; figures of an earlier report that this one lacks are removed."""
    for name, content in report.figures.items():
        write_bytes(folder / FIGURES / name, content)
    for old in sorted((folder / FIGURES).glob("*")):
        if old.is_file() and old.name not in report.figures:
            old.unlink()
    write_text(folder / PAGE, report.html)


def remake_report(path: Path, factorial: Path | None = None, out: Path | None = None) -> Path:
    """Write the report of a finished run, or of a factorial, anew.

    Args:
        path: The run directory.
        factorial: A finished factorial whose sections are put into the report of a matrix.
        out: Another folder for page and figures.

    Returns:
        The page.

    Raises:
        RunDirectoryError: The run is not finished, is damaged or in use.
    """
    from mechprobe.experiments.locks import locked
    from mechprobe.report import make_report
    from mechprobe.report.factorial import factorial_report

    home = path.absolute()
    if is_factorial(home):
        report = factorial_report(read_json(home / FACTORIAL))
    else:
        require_finished(home)
        material = read_material(home, run_name(home))
        if factorial is not None:
            require_recorded(factorial)
            material = replace(material, factorial=read_json(factorial / FACTORIAL))
        report = make_report(material)
    if out is not None:
        write_files(report, out)
        return out / PAGE
    with locked(home):
        write_files(report, home)
    return path / PAGE


def is_factorial(path: Path) -> bool:
    """Whether a folder is that of a factorial, finished or not.

    Raises:
        RunDirectoryError: Its spec is damaged; or it is, and has not come to its tables, or a
            file is not as it wrote it.
    """
    if not (path / "spec.yaml").exists() or read_spec(path).get("kind") != "factorial":
        return False
    if not (path / FACTORIAL).exists():
        raise RunDirectoryError(
            f"{path}: not finished ({FACTORIAL} is missing); run the same command again to "
            "complete it"
        )
    if note := unrecorded(path):
        raise RunDirectoryError(note)
    require_recorded(path)
    return True


def run_name(path: Path) -> str:
    """The name in the run's spec; that of its folder where there is none."""
    return str(read_spec(path).get("name", path.name))


def require_finished(path: Path) -> None:
    """Refuse a folder that is no run, and a run that has not come to its analysis.

    Raises:
        RunDirectoryError: It is one of these, or a file is not as the run wrote it.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: no such folder; give the directory of a run")
    if not (path / "spec.yaml").exists():
        raise RunDirectoryError(f"{path}: not a run directory (it has no spec.yaml)")
    run = RunDirectory(path)
    for step, names in (("tables", ("matrix.csv", "references.csv", "gaps.csv")),
                        ("analysis", (ANALYSIS,))):  # fmt: skip
        if failed := _failure(run, step):
            raise RunDirectoryError(f"{path}: the step {step} failed ({failed}); run it again")
        missing = next((name for name in names if not (run / name).exists()), None)
        if missing:
            done = sum(1 for _ in (path / ".steps").rglob("*.json")) if path.exists() else 0
            raise RunDirectoryError(
                f"{path}: not finished ({missing} is missing, {done} steps have run); "
                "run the same command again to complete it"
            )
    require_recorded(path)


def _failure(run: RunDirectory, step: str) -> str:
    file = run.failure(step)
    return str(read_json(file).get("error", "")) if file.exists() else ""
