"""All controls by name, where a built one lies, and how one comes to be.

A control lies in the package (`data/NAME`) or in the cache (`controls/NAME-DIGEST`, the digest of
its recipe). It is built in a folder of its own, which a killed build leaves to go on from, and
renamed into place when its truth is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

from mechprobe.controls import graded, smollm2, tuned
from mechprobe.controls.control import Control
from mechprobe.controls.truth import write_truth
from mechprobe.errors import CheckpointError
from mechprobe.journal import explained
from mechprobe.models.control_source import CONTROL, MARKER, SHIPPED, control_cache
from mechprobe.progress import Progress, silent

MODULES = (tuned, graded, smollm2)
"""Each declares rows in `CONTROLS`; a new kind of control is a module here."""


@cache
def _rows() -> dict[str, Control]:
    rows: dict[str, Control] = {}
    for row in chain.from_iterable(module.CONTROLS for module in MODULES):
        if row.name in rows:
            raise ValueError(f"two controls are called {row.name}")
        rows[row.name] = row
    return rows


def controls() -> tuple[Control, ...]:
    """Return every control, in the order of their declaration."""
    return tuple(_rows().values())


def control(name: str) -> Control:
    """Return the control of that name.

    Raises:
        CheckpointError: There is none.
    """
    from difflib import get_close_matches

    try:
        return _rows()[name]
    except KeyError:
        near = get_close_matches(name, _rows(), n=3) or list(_rows())[:3]
        raise CheckpointError(
            f"no control is called {name!r}; near it: {', '.join(near)}; all: "
            "mechprobe controls list"
        ) from None


def with_prompts(row: Control, source: Path) -> Control:
    """Return a control that is trained on a user's prompts too, named after their file.

    Built, it is a source like those that are declared: `control:smollm2-refuses-FILE`.

    Raises:
        CheckpointError: The control is not trained on prompts.
        PromptFileError: The file cannot be read.
    """
    from mechprobe.behavior.prompts import load_prompts

    if "prompts" not in row.parameters:
        raise CheckpointError(f"control {row.name} is not trained on prompts")
    load_prompts(source)  # a mistake in it is told now
    sets = (*row.parameters["prompts"], str(source.resolve()))
    name = f"{row.name}-{source.stem}"
    return replace(row, name=name, parameters={**row.parameters, "prompts": sets})


def built_folder(row: Control) -> Path | None:
    """Return where a control of this very recipe lies; None where it is not built."""
    shipped = SHIPPED / row.name
    if (shipped / MARKER).is_file():
        return shipped
    home = _home(row)
    return home if (home / MARKER).is_file() else None


def _home(row: Control) -> Path:
    return control_cache() / f"{row.name}-{row.digest()}"


def ensure_built(row: Control, progress: Progress = silent) -> Path:
    """Return the folder of a control, building it now if it is not there.

    A build that was killed goes on from what it left; two processes never build the same one.

    Raises:
        CheckpointError: The base cannot be read.
        RunDirectoryError: The cache cannot be written.
    """
    from filelock import FileLock

    if folder := built_folder(row):
        return folder
    home, recipe, digest = _home(row), row.recipe(), row.digest()
    with explained(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_name(f".{home.name}.lock")):
            if not (home / MARKER).is_file():
                workshop = home.with_name(f".{home.name}.making")
                workshop.mkdir(exist_ok=True)
                for source in (row.base, *row.needs):
                    _make(source)
                truth = row.build(row, workshop, progress)
                shutil.rmtree(workshop / "state", ignore_errors=True)
                write_truth(workshop, truth, recipe, digest)
                workshop.rename(home)
    return home


def _make(source: str) -> None:
    """Train the organism, or build the control, that a source names, if it is missing."""
    from mechprobe.organisms import ensure_trained, list_organisms

    if source.startswith(CONTROL):
        ensure_built(control(source.removeprefix(CONTROL)))
    name = source.removeprefix("organism:")
    if name in {one.name for one in list_organisms()}:
        ensure_trained(name)


def build_side_by_side(
    names: Sequence[str], jobs: int, prompts: Path | None = None
) -> Iterator[str]:
    """Build controls in processes of their own and yield the name of each when it is there.

    Args:
        names: Of controls.
        jobs: How many are built at a time; each takes its share of the cores.
        prompts: As of `with_prompts`.

    Raises:
        CheckpointError: One cannot be built; those that were begun are finished, or can go on.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"))
    try:
        begun = {pool.submit(_build_apart, name, prompts, threads): name for name in names}
        for one in as_completed(begun):
            one.result()
            yield begun[one]
    finally:
        pool.shutdown(cancel_futures=True)


def _build_apart(name: str, prompts: Path | None, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    row = control(name)
    ensure_built(row if prompts is None else with_prompts(row, prompts))


def is_of_world(source: str) -> bool:
    """Return whether a source is an organism or a control made from one.

    Its prompts, questions and calibration texts are then those of the organisms' world.
    """
    while source.startswith(CONTROL):
        row = _rows().get(source.removeprefix(CONTROL))
        source = row.base if row else ""
    return source.startswith("organism:")
