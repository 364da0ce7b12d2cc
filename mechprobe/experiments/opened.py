"""A finished run in a notebook: tidy DataFrames, probes, activations, figures, a page in brief.

Everything is read when it is asked for, from the files of the run directory alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import RunDirectoryError, SpecError
from mechprobe.experiments import reporting
from mechprobe.experiments.integrity import PAGE, require_recorded, unrecorded
from mechprobe.experiments.rundir import RunDirectory, read_json, read_jsonl

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from mechprobe.experiments.frames import RunFrames
    from mechprobe.experiments.opened_factorial import OpenedFactorial
    from mechprobe.probes.observation import Observation

_RESULTS = {
    "entropy": "mechprobe.probes.entropy:EntropyResult",
    "refusal_direction": "mechprobe.probes.direction_result:RefusalDirectionResult",
    "calibration": "mechprobe.probes.calibration:CalibrationResult",
    "safety_neurons": "mechprobe.probes.safety_neurons:SafetyNeuronsResult",
}
_MOST_ROWS = 30


def open_run(path: str | Path) -> OpenedRun | OpenedFactorial:
    """Open the directory of a finished run.

    Args:
        path: What `mechprobe run`, `mechprobe demo` or `mechprobe factorial` wrote.

    Raises:
        RunDirectoryError: It is no run, it is not finished, or a table is damaged.

    Example:
        >>> run = mechprobe.open_run("runs/demo")                      # doctest: +SKIP
        >>> run.matrix[["precision", "harmful_refusal_rate"]]          # doctest: +SKIP
        >>> run.cell("llama-s", "Q2_K@llama.cpp").probe("entropy")     # doctest: +SKIP
    """
    folder = Path(path).absolute()
    if reporting.is_factorial(folder):
        from mechprobe.experiments.opened_factorial import OpenedFactorial

        return OpenedFactorial(folder)
    reporting.require_finished(folder)
    return OpenedRun(folder)


@dataclass(frozen=True)
class OpenedCell:
    """One cell of a run."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """cell.json: checkpoint, scores, errors."""
        return read_json(self._intact("cell.json"))

    @cached_property
    def probes(self) -> dict[str, Any]:
        """probes.json: what every probe said, as plain values."""
        return read_json(self._intact("probes.json"))

    def probe(self, name: str) -> Any:
        """A probe's result, with its table (`rich`) and its `plot()`.

        Raises:
            SpecError: There is no probe of this name.
            StoreError: It was not run here, or its file is damaged.
        """
        if name not in _RESULTS:
            raise SpecError(f"{name!r}: no such probe; there are: {', '.join(_RESULTS)}")
        module, _, kind = _RESULTS[name].partition(":")
        return getattr(import_module(module), kind).load(self._intact("probes"))

    @cached_property
    def activations(self) -> Observation:
        """What the probes saw: activations and logits by prompt set, read from disk on demand.

        Raises:
            StoreError: The cell was not probed, or its store is unfinished or unreadable.
        """
        from mechprobe.probes.observation import Observation

        return Observation.open(self._intact("probes/observation"))

    def scores(self, task: str = "refusal") -> pd.DataFrame:
        """A line per prompt of a task.

        Raises:
            RunDirectoryError: The task was not run here; the message names those that were.
        """
        import pandas as pd

        file = self.path / "scores" / f"{task}.jsonl"
        if not file.exists():
            there = ", ".join(sorted(one.stem for one in file.parent.glob("*.jsonl")))
            raise RunDirectoryError(f"{file}: not there; scored tasks: {there or 'none'}")
        return pd.DataFrame(read_jsonl(self._intact(f"scores/{task}.jsonl")))

    def _intact(self, name: str) -> Path:
        """A file or folder of the cell that is as the run wrote it."""
        run = self.path.parents[2]
        require_recorded(run, (self.path / name).relative_to(run).as_posix())
        return self.path / name


@dataclass(frozen=True)
class OpenedRun:
    """A finished run; see `open_run`."""

    path: Path

    @cached_property
    def _frames(self) -> RunFrames:
        from mechprobe.experiments.frames import read_frames

        require_recorded(self.path)  # it may have changed since it was opened
        return read_frames(self.path, self.analysis["preset"]["instruments"]["refusal"])

    @property
    def name(self) -> str:
        """Of the spec."""
        return reporting.run_name(self.path)

    @property
    def matrix(self) -> pd.DataFrame:
        """matrix.csv: one row per cell of the spec."""
        return self._frames.matrix

    @property
    def references(self) -> pd.DataFrame:
        """references.csv: baselines that the spec did not list."""
        return self._frames.references

    @property
    def gaps(self) -> pd.DataFrame:
        """gaps.csv: what engines and kernels differ by."""
        return self._frames.gaps

    @property
    def outcomes(self) -> pd.DataFrame:
        """One row per model, cell, measure, instrument and prompt; see docs/analysis.md."""
        return self._frames.outcomes

    @property
    def templates(self) -> pd.DataFrame:
        """One row per cell: how its refusals are worded."""
        return self._frames.templates

    @cached_property
    def analysis(self) -> dict[str, Any]:
        """analysis.json; docs/analysis.md says what each field is."""
        return reporting.read_analysis(self.path)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The verdicts of the analysis, one row per cell: regime, changes, intervals, p-values."""
        import pandas as pd

        roles = self.analysis["preset"]["measures"]
        return pd.DataFrame([_flat(row, roles) for row in self.analysis["rows"]])

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Models and cells, references among them."""
        both = (self.matrix, self.references)
        return [
            (str(row["model"]), f"{row['precision']}@{row['engine']}")
            for frame in both
            for row in frame.to_dict("records")
        ]

    def cell(self, model: str, cell: str) -> OpenedCell:
        """One cell by its model and key, such as `Q4_K_M@llama.cpp`.

        Raises:
            RunDirectoryError: The run has no such cell; the message names those it has.
        """
        if (model, cell) not in self.cells:
            there = ", ".join("/".join(one) for one in self.cells[:_MOST_ROWS])
            raise RunDirectoryError(f"{self.path}: no cell {model}/{cell}; there are: {there}")
        return OpenedCell(RunDirectory(self.path).cell(model, cell))

    def figures(self) -> Mapping[str, Figure]:
        """The figures of the report by name, to show or to change."""
        from mechprobe.report.page import drawings
        from mechprobe.report.sections import sections

        require_recorded(self.path)
        material = reporting.read_material(self.path, self.name)
        return {one.name: one.figure for one in drawings(material, sections(material))}

    def report(self) -> str:
        """The report as one HTML page, made anew."""
        from mechprobe.report import make_report

        require_recorded(self.path)
        return make_report(reporting.read_material(self.path, self.name)).html

    def __repr__(self) -> str:
        """The verdict in a line."""
        return f"<mechprobe run {self.name!r}: {self._headline().verdict} ({self.path})>"

    def _headline(self) -> Any:
        from mechprobe.report import Material
        from mechprobe.report.headline import headline

        return headline(Material(self.name, self.analysis))

    def _repr_html_(self) -> str:
        """For Jupyter: the verdict, its limits, the rows, where the whole report is."""
        top = self._headline()
        note = unrecorded(self.path)
        said = (*top.said, *top.limits[:1], *([note] if note else []))
        lines = "".join(f"<p>{escape(line)}</p>" for line in said)
        shown = self.rows[_BRIEF].head(_MOST_ROWS)
        table = shown.to_html(escape=True, index=False, na_rep="", float_format="{:.1f}".format)
        more = len(self.rows) - len(shown)
        rest = f"<p>{more} more rows in <code>.rows</code></p>" if more else ""
        page = escape(str(self.path / PAGE))
        return (
            f"<h3>{escape(self.name)}: {escape(top.verdict)}</h3>{lines}{table}{rest}"
            f"<p>Whole report: <code>{page}</code></p>"
        )


_BRIEF = ["model", "cell", "regime", "refusal_points", "refusal_low", "refusal_high",
          "quality_points"]  # fmt: skip


def _flat(row: Mapping[str, Any], roles: Mapping[str, str | None]) -> dict[str, Any]:
    """A row of the analysis in one line: who, verdict, and the two deltas that make it."""
    found = {name: row[name] for name in _WHO}
    for role in ("refusal", "quality"):
        delta = row["deltas"].get(roles.get(role) or "") or {}
        found |= {f"{role}_{name}": delta.get(name) for name in _PARTS}
    return found


_WHO = ("model", "family", "cell", "precision", "engine", "baseline", "status", "error",
        "engine_differs", "regime", "boundary", "danger")  # fmt: skip
_PARTS = ("n", "before", "after", "lost", "gained", "points", "low", "high", "mcnemar_p_holm",
          "equivalent")  # fmt: skip
