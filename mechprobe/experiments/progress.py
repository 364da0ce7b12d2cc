"""Shows a run as it goes: how many steps are done, and how far the running one is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import SpinnerColumn, TaskID

from mechprobe import progress
from mechprobe.experiments.steps import Result, Step


class RunDisplay(AbstractContextManager["RunDisplay"]):
    """The whole run, and beneath it each step that is running, by its batches."""

    def __init__(self, console: Console, title: str, total: int, **options: Any) -> None:
        self._display = progress.Display(console, SpinnerColumn(), **options)
        self.line = self._display.line
        self._run = self._display.add_task(title, total=total)
        self._steps: dict[str, TaskID] = {}
        self._reused = 0

    def __enter__(self) -> RunDisplay:
        """Begin to show."""
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show nothing further."""
        self._display.stop()

    def started(self, step: Step) -> None:
        """A step begins to run."""
        where = step.cell.rpartition("/")[2] if step.cell else ""
        self._forget(step)  # a step that a cluster lost begins again
        self._steps[step.name] = self._display.add_task(f"  {where} {step.label}", total=None)

    def advanced(self, step: Step, done: int, total: int) -> None:
        """A running step finished a batch."""
        self._display.report(self._steps[step.name], done, total)

    def finished(self, step: Step, result: Result) -> None:
        """A step ended, or was found done."""
        self._forget(step)
        self._reused += result.status != "done"
        self._display.update(self._run, advance=1, before=self._reused)

    def _forget(self, step: Step) -> None:
        if step.name in self._steps:
            self._display.remove_task(self._steps.pop(step.name))


class NoDisplay:
    """Shows nothing."""

    def started(self, step: Step) -> None:
        """Nothing."""

    def advanced(self, step: Step, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, step: Step, result: Result) -> None:
        """Nothing."""
