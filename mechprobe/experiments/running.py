"""Run a spec: plan, open the directory, bring every step to an end, say how it went."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mechprobe
from mechprobe.experiments.engine_local import LocalEngine
from mechprobe.experiments.matrix import read_matrix
from mechprobe.experiments.plan import Plan, make_plan
from mechprobe.experiments.rundir import RunDirectory, opened
from mechprobe.experiments.spec import Spec, canonical
from mechprobe.experiments.steps import Display, Outcome, StepEngine

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
SUCCESS, NOTHING_RAN, NOT_MEASURED = 0, 2, 4


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end, with or without failures."""

    run: RunDirectory
    plan: Plan
    outcome: Outcome
    rows: tuple[dict[str, str], ...]
    """Of matrix.csv, as text."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0; 4 where some of the cells failed; 2 where none could be measured."""
        bad = [row for row in self.rows if row["status"] != "ok"]
        if not self.rows or len(bad) == len(self.rows):
            return NOTHING_RAN
        return NOT_MEASURED if bad or self.outcome.failures else SUCCESS


def provenance() -> dict[str, Any]:
    """What made a run: versions, machine, command. Nothing of it enters a key."""
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
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: installed(name) for name in _RECORDED},
    }


def run_spec(
    spec: Spec,
    out: Path,
    show: Callable[[str, int], AbstractContextManager[Display]],
    engine: StepEngine | None = None,
) -> Finished:
    """Run a spec in a directory, or complete what is there.

    Args:
        spec: The matrix.
        out: The run directory.
        show: Makes the display from a title and the number of steps.
        engine: Runs the steps; in this process by default.

    Raises:
        MechprobeError: The directory cannot be used, or prompts cannot be read. Trouble with one
            cell is in the outcome instead.
    """
    begun = time.monotonic()
    plan = make_plan(spec)
    with opened(out, canonical(spec), provenance()) as run:
        with show(spec.name, len(plan.steps)) as display:
            outcome = (engine or LocalEngine()).run(plan.steps, run, display)
        rows = tuple(read_matrix(run)) if outcome.results["tables"].ok else ()
    return Finished(run, plan, outcome, rows, time.monotonic() - begun)
