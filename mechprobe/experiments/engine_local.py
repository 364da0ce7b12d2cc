"""Run steps in this process, one model at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mechprobe.experiments.executing import bring_to_end, groups
from mechprobe.experiments.locks import try_locked
from mechprobe.experiments.rundir import RunDirectory
from mechprobe.experiments.steps import Display, Outcome, Result, Step, check_graph
from mechprobe.experiments.workbench import Workbench

_PAUSE = 0.2
"""Seconds between two looks at cells that other processes hold."""


class LocalEngine:
    """The default engine: every step, in order."""

    name = "local"

    def run(self, steps: Sequence[Step], run: RunDirectory, display: Display) -> Outcome:
        """Run what is not done yet; a failing step is recorded and the other cells go on.

        Raises:
            RunDirectoryError: The run directory cannot be written; nothing is half-written.
        """
        check_graph(steps)
        results: dict[str, Result] = {}
        for group in groups(steps):
            run_group(group, run, results, display)
        return outcome_of(steps, results)


class ShardEngine:
    """Shares a run directory with other processes: a cell is one process's at a time.

    A cell that another one holds is left for later, and then mostly found done.
    """

    name = "shard"

    def run(self, steps: Sequence[Step], run: RunDirectory, display: Display) -> Outcome:
        """Run what is not done yet, as `LocalEngine` does."""
        check_graph(steps)
        results: dict[str, Result] = {}
        pending = groups(steps)
        while pending:
            waiting = [
                group
                for group in pending
                if not (is_ready(group, results) and self._try(group, run, results, display))
            ]
            if len(waiting) == len(pending):
                time.sleep(_PAUSE)
            pending = waiting
        return outcome_of(steps, results)

    def _try(
        self, group: list[Step], run: RunDirectory, results: dict[str, Result], display: Display
    ) -> bool:
        name = (group[0].cell or group[0].name).replace("/", "~")
        with try_locked(run.path, f"cell-{name}") as mine:
            if mine:
                run_group(group, run, results, display)
        return mine


def is_ready(group: Sequence[Step], results: dict[str, Result]) -> bool:
    """Whether everything that a group depends on has come to its end."""
    own = {step.name for step in group}
    wanted = {name for step in group for name in (*step.needs, *step.after)} - own
    return wanted <= results.keys()


def run_group(
    group: Sequence[Step], run: RunDirectory, results: dict[str, Result], display: Display
) -> None:
    """Bring the steps of one cell to their end, weights shared, and add their results."""
    bench = Workbench()
    try:
        for step in group:
            result = bring_to_end(step, run, results, bench, display)
            results[step.name] = result
            if result.status == "failed":
                bench.clear()  # whatever broke may have broken the loaded model
            display.finished(step, result)
    finally:
        bench.clear()


def outcome_of(steps: Sequence[Step], results: dict[str, Result]) -> Outcome:
    """Results in the order of the steps."""
    ordered = {step.name: results[step.name] for step in steps}
    failed = tuple(name for name, result in ordered.items() if result.status == "failed")
    return Outcome(ordered, failed)
