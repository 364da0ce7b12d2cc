"""Run a factorial: plan, open the directory, bring every step to an end, say how it went."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.exit_codes import ExitCode
from mechprobe.experiments.acquire import is_incomplete, make_missing
from mechprobe.experiments.engine_local import LocalEngine
from mechprobe.experiments.factorial_plan import TABLES, FactorialPlan, plan_factorial
from mechprobe.experiments.factorial_spec import FactorialSpec, canonical_factorial
from mechprobe.experiments.factorial_tables import DOCUMENT
from mechprobe.experiments.locks import opened
from mechprobe.experiments.rundir import RunDirectory, read_json
from mechprobe.experiments.running import provenance
from mechprobe.experiments.spec_problems import factorial_problems
from mechprobe.experiments.steps import Display, Outcome, StepEngine
from mechprobe.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class FinishedFactorial:
    """A factorial that came to its end, with or without failures."""

    run: RunDirectory
    plan: FactorialPlan
    outcome: Outcome
    document: dict[str, Any] | None
    """factorial.json; None where no cell could be measured."""
    seconds: float

    @property
    def exit_code(self) -> ExitCode:
        """0; 4 where a step failed or a cell has no rate; 2 where nothing was measured.

        A test that the answers cannot support (`sparse`, say) is a finding, not a failure.
        """
        if self.document is None:
            return ExitCode.COULD_NOT_RUN
        lost = any(one["what"] in ("answers", "rates") for one in self.document["not_measured"])
        failed = lost or bool(self.outcome.failures)
        return ExitCode.NOT_MEASURED if failed else ExitCode.DONE


def run_factorial(
    spec: FactorialSpec,
    out: Path,
    show: Callable[[str, int], AbstractContextManager[Display]],
    engine: StepEngine | None = None,
    *,
    tell: Callable[[str], AbstractContextManager[Progress]] = lambda _: nullcontext(silent),
) -> FinishedFactorial:
    """Run a factorial in a directory, or complete what is there.

    Args:
        spec: The factorial.
        out: The run directory.
        show: Makes the display from a title and the number of steps.
        engine: Runs the steps; in this process by default.
        tell: Is told the name of an organism that is trained first, and shows how far it is.

    Raises:
        PreflightError: Headers, names or paths show that a cell could not be measured; the message
            has a line for each. Trouble that shows only during work is in the outcome instead.
        RunDirectoryError: The directory is locked or belongs to another spec.
    """
    begun = time.monotonic()
    factorial_problems(spec, out, local_only=True).require_none(listed=True)
    fetched = is_incomplete(spec.matrix)
    make_missing(spec.matrix, tell)
    plan = plan_factorial(spec)
    if fetched:  # what was not here could not be looked at
        factorial_problems(spec, out).require_none(listed=True)
    with opened(out, canonical_factorial(spec), provenance(spec.threads)) as run:
        with show(spec.name, len(plan.steps)) as display:
            outcome = (engine or LocalEngine()).run(plan.steps, run, display)
        document = read_json(run / DOCUMENT) if outcome.results[TABLES].ok else None
    return FinishedFactorial(run, plan, outcome, document, time.monotonic() - begun)
