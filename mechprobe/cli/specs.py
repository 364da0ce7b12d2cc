"""From a spec to its run directory, for the commands that take one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.cli.terminal import Screen, quiet
from mechprobe.errors import PreflightError

if TYPE_CHECKING:
    from mechprobe.experiments.spec_reading import Kind, Reading
    from mechprobe.preflight import Problems


def right_spec(
    reading: Reading[Kind], look: Callable[[Kind], Problems], out: Path, json: bool
) -> Kind:
    """Return a spec; a wrong one ends with its mistakes and those of what it names."""
    from mechprobe.experiments.spec_problems import require_right_spec

    with quiet() as screen, problems_shown(screen, out, json):
        return require_right_spec(reading, look)


@contextmanager
def problems_shown(screen: Screen, out: Path, json: bool) -> Iterator[None]:
    """Give a program the list of what keeps a run from starting; people read it on stderr."""
    try:
        yield
    except PreflightError as error:
        if json:
            problems = [asdict(problem) for problem in error.problems]
            screen.document({"run": str(out), "exit_code": error.exit_code, "problems": problems})
        raise
