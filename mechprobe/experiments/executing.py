"""One step brought to its end: found done, run, or recorded as failed."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial

from mechprobe.errors import MechprobeError, RunDirectoryError
from mechprobe.experiments.rundir import FULL_DISK, RunDirectory, explained, write_json
from mechprobe.experiments.steps import (
    Display,
    Result,
    Step,
    Task,
    is_done,
    mark_done,
    resolve_action,
    step_key,
)
from mechprobe.experiments.workbench import Workbench


def groups(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that follow each other and belong to one cell; every other step alone."""
    return [list(part) for _, part in itertools.groupby(steps, lambda s: s.cell or s.name)]


def settled(step: Step, run: RunDirectory, results: Mapping[str, Result]) -> Result | None:
    """How a step ends without being run: skipped or reused; None where it must run."""
    bad = next((name for name in step.needs if not results[name].ok), None)
    if bad is not None:
        return Result("skipped", "", results[bad].error)
    key = step_key(step, results)
    if is_done(step, key, run):
        return Result("reused", key)
    return None


def bring_to_end(
    step: Step,
    run: RunDirectory,
    results: Mapping[str, Result],
    bench: Workbench,
    display: Display,
) -> Result:
    """Run a step unless it is done; a failure is recorded and returned.

    Args:
        step: Everything it needs or reports is in `results`.
        run: Where its files lie.
        results: Of the steps before it.
        bench: What steps of its cell share.
        display: Told that it starts, and how far it is.

    Raises:
        RunDirectoryError: The run directory cannot be written.
    """
    ended = settled(step, run, results)
    if ended is not None:
        return ended
    key = step_key(step, results)
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
        return record_failure(step, key, run, one_line(error), "")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            with explained(run.path):
                raise
        said = f"{type(error).__name__}: {one_line(error)}"
        return record_failure(step, key, run, said, traceback.format_exc())
    mark_done(step, key, run, time.monotonic() - begun)
    return Result("done", key)


def one_line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def record_failure(step: Step, key: str, run: RunDirectory, said: str, trace: str) -> Result:
    """Write down how a step failed, and what it may have left."""
    content = {
        "key": key,
        "error": said,
        "writes": list(step.outputs),
        "traceback": trace.splitlines(),
    }
    write_json(run.failure(step.name), content)
    return Result("failed", key, said)
