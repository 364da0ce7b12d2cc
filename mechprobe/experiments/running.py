"""Run a spec: plan, open the directory, bring every step to an end, say how it went."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mechprobe
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode
from mechprobe.experiments.acquire import is_incomplete, make_missing
from mechprobe.experiments.engine_local import LocalEngine, ShardEngine
from mechprobe.experiments.locks import opened
from mechprobe.experiments.matrix import read_matrix
from mechprobe.experiments.plan import Plan, make_plan
from mechprobe.experiments.reporting import ANALYSIS
from mechprobe.experiments.rundir import RunDirectory, read_json
from mechprobe.experiments.spec import Spec, canonical
from mechprobe.experiments.spec_problems import spec_problems
from mechprobe.experiments.steps import Display, Outcome, StepEngine, shard
from mechprobe.experiments.timings import remember
from mechprobe.progress import Progress, silent

_RECORDED = (
    "torch",
    "transformers",
    "tokenizers",
    "gptqmodel",
    "xllamacpp",
    "cyllama",
    "gguf",
    "numpy",
    "safetensors",
)
ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end, with or without failures."""

    run: RunDirectory
    plan: Plan
    outcome: Outcome
    rows: tuple[dict[str, str], ...]
    """Of matrix.csv, as text."""
    seconds: float
    part: tuple[int, int] | None = None
    """Index and count of the shard, where it was one."""
    verdict: dict[str, Any] | None = None
    """Of analysis.json; None where there is none."""

    @property
    def whole(self) -> bool:
        """Whether no step and no row failed."""
        return not self.outcome.failures and all(row["status"] == "ok" for row in self.rows)

    @property
    def unmet(self) -> list[str]:
        """Main numbers of probes that were asked for and are not there, by row."""
        return [
            f"{row['model']}/{row['precision']}@{row['engine']}: {row['unmet']}"
            for row in self.rows
            if row.get("unmet")
        ]

    @property
    def exit_code(self) -> ExitCode:
        """As `mechprobe.exit_codes` says: nothing measured, else a loss, else something missing."""
        if self.part is not None:
            return ExitCode.NOT_MEASURED if self.outcome.failures else ExitCode.DONE
        # what only opens a checkpoint or sums a cell up needs no other step
        measured = (step.name for step in self.plan.steps if step.cell and step.needs)
        if not self.rows or not any(self.outcome.results[name].ok for name in measured):
            return ExitCode.COULD_NOT_RUN
        if self.verdict and self.verdict["level"] == "danger":
            return ExitCode.REGRESSION
        return ExitCode.DONE if self.whole and not self.unmet else ExitCode.NOT_MEASURED


def provenance(threads: int | None) -> dict[str, Any]:
    """What made a run: versions, machine, command. Nothing of it enters a key.

    Args:
        threads: Of the engines, where the spec names them.
    """
    import os

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "mechprobe": mechprobe.__version__,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS") if threads is None else threads,
        "versions": {name: installed(name) for name in _RECORDED},
    }


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Index from 0 and count of `I/N`; None without.

    Raises:
        SpecError: It is no such text.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise SpecError(f"--shard {text}: give I/N, such as 1/4 for the first of four jobs")
    return int(found[1]) - 1, int(found[2])


def choose_engine(
    name: str, address: str | None, part: tuple[int, int] | None
) -> StepEngine | None:
    """What runs the steps; None is the default of `run_spec`.

    Raises:
        MissingExtraError: Ray is not installed.
        SpecError: There is no such engine, or the options do not go together.
    """
    if name not in ENGINES:
        raise SpecError(f"--engine {name}: there are {', '.join(ENGINES)}")
    if name == "local":
        if address is not None:
            raise SpecError("--address is of a Ray cluster; add --engine ray")
        return None
    if part is not None:
        raise SpecError("--shard is for job arrays; --engine ray spreads the cells itself")
    from mechprobe.experiments.engine_ray import RayEngine

    return RayEngine(address)


def run_spec(
    spec: Spec,
    out: Path,
    show: Callable[[str, int], AbstractContextManager[Display]],
    engine: StepEngine | None = None,
    *,
    part: tuple[int, int] | None = None,
    tell: Callable[[str], AbstractContextManager[Progress]] = lambda _: nullcontext(silent),
) -> Finished:
    """Run a spec in a directory, or complete what is there.

    Args:
        spec: The matrix.
        out: The run directory.
        show: Makes the display from a title and the number of steps.
        engine: Runs the steps; in this process by default.
        part: Index and count of a shard: run these cells, beside other shards, and no tables.
        tell: Is told the source of an organism or control that is made first, and shows how far.

    Raises:
        PreflightError: Headers, names or paths show that a cell could not be measured; the message
            has a line for each. Trouble that shows only during work is in the outcome instead.
        RunDirectoryError: The directory is locked or belongs to another spec.
    """
    begun = time.monotonic()
    here = engine is None or isinstance(engine, LocalEngine)
    spec_problems(spec, out, local_only=True, here=here).require_none(listed=True)
    fetched = is_incomplete(spec)
    make_missing(spec, tell)
    plan = make_plan(spec)
    if fetched:  # what was not here could not be looked at
        spec_problems(spec, out, here=here).require_none(listed=True)
    steps = list(plan.steps) if part is None else shard(plan.steps, *part)
    engine = engine or (LocalEngine() if part is None else ShardEngine())
    with opened(out, canonical(spec), provenance(spec.threads), part) as run:
        with show(spec.name, len(steps)) as display:
            outcome = engine.run(steps, run, display)
        remember(steps, outcome, run, plan.counts)
        tables = outcome.results.get("tables")
        rows = tuple(read_matrix(run)) if tables is not None and tables.ok else ()
        analysed = outcome.results.get("analysis")
        found = read_json(run / ANALYSIS) if analysed is not None and analysed.ok else {}
    seconds = time.monotonic() - begun
    return Finished(run, plan, outcome, rows, seconds, part, found.get("verdict"))
