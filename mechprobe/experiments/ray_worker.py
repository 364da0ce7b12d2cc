"""What runs on a node of a Ray cluster: the steps of one cell, its weights shared.

Where the node sees the run directory the steps write into it. Where it does not, they run in a
scratch folder to which their inputs were brought, and every file that they write is sent back as
soon as its step has ended, so that a lost node loses one step.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mechprobe
from mechprobe.errors import MechprobeError
from mechprobe.experiments.executing import bring_to_end
from mechprobe.experiments.locks import locked
from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.rundir import RunDirectory
from mechprobe.experiments.steps import Result, Step
from mechprobe.experiments.workbench import Workbench

CHUNK = 8 << 20
"""Bytes of a file that travel at once."""
_LOCK_WAIT = 60.0
_SCRATCH = "mechprobe-ray-"


@dataclass(frozen=True, slots=True)
class Order:
    """The steps of one cell that are to be run, and what they depend on."""

    steps: tuple[Step, ...]
    known: Mapping[str, Result]
    """Results of what they need from elsewhere."""
    run: str
    token: str
    """Content of the run directory's token file: whoever reads it sees the directory."""
    shared: bool
    """Write into the run directory itself."""
    places: Mapping[str, str]
    """Where, below the inputs, the files of a source lie that was brought along."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A worker took the order."""

    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Started:
    """A step begins."""

    step: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file; the first one has offset 0."""

    path: str
    offset: int
    content: bytes
    written: int
    """When the file was, in nanoseconds: large files are known by it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A step came to its end, and everything that it wrote was sent."""

    step: str
    result: Result
    seconds: float


Event = Begun | Started | Piece | Ended
TOKEN = ".ray.token"


def look(run: str) -> dict[str, str | None]:
    """What a node is: its versions, and the token if it sees the run directory."""
    try:
        token: str | None = (Path(run) / TOKEN).read_text(encoding="utf-8")
    except OSError:
        token = None
    return {
        "host": socket.gethostname(),
        "token": token,
        "mechprobe": mechprobe.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def work(order: Order, inputs: Mapping[str, list[Any]]) -> Iterator[Event]:
    """Run an order, telling how it goes.

    Args:
        order: The steps.
        inputs: Files as lists of references to their pieces, by path relative to the scratch
            folder; empty where the run directory is shared.

    Raises:
        MechprobeError: The run directory is not to be seen, or a disk is full.
    """
    from mechprobe.experiments.suite import forget
    from mechprobe.models.located import lying_at

    forget()
    yield Begun(socket.gethostname(), os.getpid())
    if order.shared:
        if look(order.run)["token"] != order.token:
            raise MechprobeError(f"{order.run}: not to be seen from {socket.gethostname()}")
        name = f"cell-{order.steps[0].cell}".replace("/", "~")
        with locked(Path(order.run), name, wait=_LOCK_WAIT):
            yield from _run(order, RunDirectory(Path(order.run)), None)
        return
    scratch = _scratch()
    try:
        _unpack(scratch, inputs)
        places = {text: scratch / place for text, place in order.places.items()}
        with lying_at(places):
            yield from _run(order, RunDirectory(scratch), lambda seen: _changed(scratch, seen))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch() -> Path:
    """A folder of this process's own; those of processes that were killed are removed."""
    import psutil

    for old in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        owner = old.name.removeprefix(_SCRATCH).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-"))


Seen = dict[str, tuple[int, int]]


def _run(
    order: Order, run: RunDirectory, changed: Callable[[Seen], Iterator[Piece]] | None
) -> Iterator[Event]:
    results = dict(order.known)
    bench = Workbench()
    try:
        for step in order.steps:
            yield Started(step.name)
            seen = _snapshot(run.path) if changed else {}
            result = bring_to_end(step, run, results, bench, NoDisplay())
            results[step.name] = result
            if result.status == "failed":
                bench.clear()
            if changed:
                yield from changed(seen)
            yield Ended(step.name, result, _seconds(step, run, result))
    finally:
        bench.clear()


def _seconds(step: Step, run: RunDirectory, result: Result) -> float:
    from mechprobe.experiments.rundir import read_json

    return float(read_json(run.marker(step.name))["seconds"]) if result.status == "done" else 0.0


def _unpack(scratch: Path, inputs: Mapping[str, list[Any]]) -> None:
    import ray

    for name, pieces in inputs.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in pieces:
                file.write(ray.get(piece))


def _is_result(path: Path) -> bool:
    """Whether a file belongs to the run: no journal, and nothing half-written."""
    return path.is_file() and path.suffix not in (".journal", ".tmp", ".lock")


def _snapshot(folder: Path) -> Seen:
    found = {}
    for path in folder.rglob("*"):
        if _is_result(path):
            stat = path.stat()
            found[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
    return found


def _changed(folder: Path, before: Seen) -> Iterator[Piece]:
    for name, now in sorted(_snapshot(folder).items()):
        if before.get(name) != now:
            yield from pieces_of(folder / name, name)


def pieces_of(path: Path, name: str) -> Iterator[Piece]:
    """A file as pieces; an empty one is one empty piece."""
    written = path.stat().st_mtime_ns
    with path.open("rb") as file:
        offset = 0
        while content := file.read(CHUNK):
            yield Piece(name, offset, content, written)
            offset += len(content)
        if offset == 0:
            yield Piece(name, 0, b"", written)
