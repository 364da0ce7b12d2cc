"""Shows a run as it goes: bars on a terminal, nothing elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mechprobe.experiments.steps import Result, Step


class RunDisplay(AbstractContextManager["RunDisplay"]):
    """Two lines: the whole run, and the batches of the step that is running."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._title = title
        self._total = total
        self._run = TaskID(0)
        self._step = TaskID(0)

    def __enter__(self) -> RunDisplay:
        """Start drawing."""
        self._progress.start()
        self._run = self._progress.add_task(self._title, total=self._total)
        self._step = self._progress.add_task("", total=None, visible=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing and wipe the bars."""
        self._progress.stop()

    def started(self, step: Step) -> None:
        """A step begins to run."""
        where = step.cell.rpartition("/")[2] if step.cell else ""
        self._progress.reset(
            self._step, description=f"  {where} {step.label}", total=None, visible=True
        )

    def advanced(self, step: Step, done: int, total: int) -> None:
        """A running step finished a batch."""
        self._progress.update(self._step, completed=done, total=total)

    def finished(self, step: Step, result: Result) -> None:
        """A step ended, or was found done."""
        self._progress.update(self._step, visible=False)
        self._progress.advance(self._run)


class NoDisplay:
    """Shows nothing."""

    def started(self, step: Step) -> None:
        """Nothing."""

    def advanced(self, step: Step, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, step: Step, result: Result) -> None:
        """Nothing."""
