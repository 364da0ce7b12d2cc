"""Run steps in this process, in order, one model at a time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from functools import partial

from mechprobe.errors import MechprobeError, RunDirectoryError
from mechprobe.experiments.rundir import FULL_DISK, RunDirectory, explained, write_json
from mechprobe.experiments.steps import (
    Display,
    Outcome,
    Result,
    Step,
    Task,
    check_graph,
    is_done,
    mark_done,
    resolve_action,
    step_key,
)
from mechprobe.experiments.workbench import Workbench


class LocalEngine:
    """The default engine."""

    name = "local"

    def run(self, steps: Sequence[Step], run: RunDirectory, display: Display) -> Outcome:
        """Run what is not done yet; a failing step is recorded and the other cells go on.

        Raises:
            RunDirectoryError: The run directory cannot be written; nothing is half-written.
        """
        check_graph(steps)
        results: dict[str, Result] = {}
        failures: list[str] = []
        bench = Workbench()
        cell: str | None = None
        try:
            for step in steps:
                if step.cell != cell:
                    bench.clear()
                    cell = step.cell
                result = self._bring_to_end(step, run, results, bench, display)
                results[step.name] = result
                if result.status == "failed":
                    failures.append(step.name)
                    bench.clear()  # whatever broke may have broken the loaded model
                display.finished(step, result)
        finally:
            bench.clear()
        return Outcome(results, tuple(failures))

    def _bring_to_end(
        self,
        step: Step,
        run: RunDirectory,
        results: dict[str, Result],
        bench: Workbench,
        display: Display,
    ) -> Result:
        bad = next((name for name in step.needs if not results[name].ok), None)
        if bad is not None:
            return Result("skipped", "", results[bad].error)
        key = step_key(step, results)
        if is_done(step, key, run):
            return Result("reused", key)
        if step.blocked is not None:
            return _failed(step, key, run, step.blocked, "")
        display.started(step)
        known = {name: results[name] for name in (*step.needs, *step.after)}
        task = Task(step, key, run, bench, known, partial(display.advanced, step))
        begun = time.monotonic()
        try:
            run.marker(step.name).unlink(missing_ok=True)
            resolve_action(step)(task)
        except RunDirectoryError:
            raise
        except MechprobeError as error:
            return _failed(step, key, run, _one_line(error), "")
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                with explained(run.path):
                    raise
            said = f"{type(error).__name__}: {_one_line(error)}"
            return _failed(step, key, run, said, traceback.format_exc())
        mark_done(step, key, run, time.monotonic() - begun)
        return Result("done", key)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _failed(step: Step, key: str, run: RunDirectory, said: str, trace: str) -> Result:
    content = {"key": key, "error": said, "traceback": trace.splitlines()}
    write_json(run.failure(step.name), content)
    return Result("failed", key, said)
