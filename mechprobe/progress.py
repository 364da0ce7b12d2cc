"""How far long work is: bars on a terminal, a line a minute where the output is redirected."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

Progress = Callable[[int, int], None]
"""Told of items done and in all. The first call of a piece of work says what was there before it,
and another total, or fewer items done, begins another piece."""

SECONDS = 60.0
"""Between two lines of redirected work."""


def silent(done: int, total: int) -> None:
    """Show nothing."""


def part_of_all(progress: Progress, before: int, size: int, total: int) -> Progress:
    """How far a part of the work is, told as how far all of it is.

    Args:
        progress: Of all the work.
        before: Items done before the part began.
        size: Items of the part, however it counts them itself.
        total: Items in all.
    """

    def told(done: int, of: int) -> None:
        progress(before + size * done // of, total)

    return told


class Display(RichProgress):
    """Rich's bars; where the console is no terminal, a line a minute from a thread in their place.

    A line holds each visible task: how far it is, its mean rate, and the time left at that rate.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, **options: Any) -> None:
        """Show nothing yet.

        Args:
            console: Where to.
            columns: Of the bars, beside those that every display has.
            options: Of rich's `Progress`.
        """
        self._redirected = not console.is_terminal
        super().__init__(
            *columns,
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self._redirected,
            **options,
        )
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to draw, or to print lines."""
        super().start()
        if self._redirected:
            threading.Thread(target=self._tell, daemon=True).start()

    def stop(self) -> None:
        """Wipe the bars, or print no further line."""
        self._stopped.set()
        super().stop()

    def report(self, task: TaskID, done: int, total: int) -> None:
        """Tell how far a task is; see `Progress`."""
        known = self._tasks[task]
        if known.total != total or done < known.completed or "before" not in known.fields:
            self.reset(task, total=total, completed=done, before=done)
        else:
            self.update(task, completed=done)

    def line(self) -> str:
        """What a line says now."""
        return "; ".join(_described(task) for task in self.tasks if task.visible)

    def _tell(self) -> None:
        while not self._stopped.wait(SECONDS):
            self.console.print(f"mechprobe: {self.line()}", soft_wrap=True)


def _described(task: Task) -> str:
    title, seconds = task.description.strip(), task.elapsed or 0.0
    if task.total is None:
        return f"{title}, {_clock(seconds)} so far"
    made = task.completed - task.fields.get("before", 0)
    far = f"{title}: {task.completed:g} of {task.total:g}"
    if made <= 0 or seconds <= 0:
        return f"{far}, {_clock(seconds)} so far"
    rate = made / seconds
    said = f"{rate:.3g}/s" if rate >= 1 else f"{60 * rate:.3g}/min"
    return f"{far}, {said}, {_clock((task.total - task.completed) / rate)} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Bar:
    """One piece of long work after the other; itself a `Progress`."""

    def __init__(self, console: Console, title: str) -> None:
        self._display = Display(console)
        self._task = self._display.add_task(title, total=None)

    def __enter__(self) -> Bar:
        """Begin to show."""
        self._display.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Show nothing further."""
        self._display.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._display.report(self._task, done, total)

    def begin(self, title: str) -> None:
        """Another piece of work begins, of a size that nobody knows yet."""
        self._display.remove_task(self._task)
        self._task = self._display.add_task(title, total=None)
