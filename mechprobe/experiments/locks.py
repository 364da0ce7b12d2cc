"""Who may use a run directory: one run alone, or shards that lock their cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mechprobe import holding
from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.rundir import (
    RunDirectory,
    explained,
    held_spec,
    spec_files,
    write_json,
    write_text,
)

_SHARD = "shard-"
_SETTLING = 2.0
"""Seconds that a shard may take to settle in."""


@contextlib.contextmanager
def locked(path: Path, what: str = "run", wait: float = 0.0) -> Iterator[None]:
    """Hold a lock inside a run directory; the system frees it however the process ends.

    Args:
        path: The run directory.
        what: Name of the lock: `run` for the whole directory, one per cell or shard otherwise.
        wait: Seconds to wait for it.

    Raises:
        RunDirectoryError: Another process holds it; the message says which.
    """
    with try_locked(path, what, wait) as mine:
        if not mine:
            part = f"{what}, " if what.startswith(_SHARD) else ""
            raise RunDirectoryError(f"{path}: in use by {part}{holding.holder(path, what)}")
        yield


@contextlib.contextmanager
def try_locked(path: Path, what: str, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock if nobody else does: yields whether it is ours; see `locked`."""
    with contextlib.ExitStack() as stack:
        with explained(path):
            mine = stack.enter_context(holding.try_locked(path, what, wait))
        yield mine


def _ours(name: str) -> bool:
    """Whether a file may lie in a run directory that has no spec yet: one killed at birth."""
    ends = (".lock", ".holder.json")
    locks = name.startswith((".run.", f".{_SHARD}")) and name.endswith(ends)
    return locks or (name[0] == "." and name.endswith(".tmp"))


@contextlib.contextmanager
def opened(
    path: Path,
    spec_text: str,
    provenance: Mapping[str, Any],
    part: tuple[int, int] | None = None,
) -> Iterator[RunDirectory]:
    """Make or reopen the run directory of a spec, locked for this process.

    Args:
        path: The folder; made when missing.
        spec_text: The spec in canonical YAML; a directory belongs to one spec for good.
        provenance: Versions, machine, command: written when the directory is made.
        part: Index and count of a shard. Shards share the directory with each other and lock
            their cells; a run that is no shard has it alone.

    Raises:
        RunDirectoryError: The folder belongs to another spec, holds something else, is locked by
            another process or cannot be written.
    """
    path = path.absolute()
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in path.iterdir()]
        if held_spec(path) is None and not all(map(_ours, names)):
            raise RunDirectoryError(
                f"{path}: holds files that are not a run; choose an empty folder with --out"
            )
    with contextlib.ExitStack() as shard:
        with contextlib.ExitStack() as whole:
            # other shards hold it for a moment, a run that is no shard to its end
            whole.enter_context(locked(path, wait=_SETTLING))
            if part is not None:
                name = f"{_SHARD}{part[0] + 1}-of-{part[1]}"
                shard.enter_context(locked(path, name))
            _settle(path, spec_text, provenance)
            if part is None:
                _require_no_shard(path)
                _sweep(path)
                yield RunDirectory(path)
                _sweep(path)  # a worker elsewhere may have been killed meanwhile
                return
        yield RunDirectory(path)


def _sweep(path: Path) -> None:
    """Remove what kill -9 left of files in the making."""
    for torn in path.rglob(".*.tmp"):
        torn.unlink(missing_ok=True)


def _settle(path: Path, spec_text: str, provenance: Mapping[str, Any]) -> None:
    """Make the directory the spec's, or see that it is."""
    if held_spec(path) not in (None, spec_text):
        raise RunDirectoryError(
            f"{path}: belongs to another spec (its spec.yaml); choose another folder with --out"
        )
    for file in spec_files(path):
        if not file.exists() or file.read_bytes() != spec_text.encode():
            write_text(file, spec_text)
    if not (path / "provenance.json").exists():
        write_json(path / "provenance.json", provenance)


def _require_no_shard(path: Path) -> None:
    for lock in sorted(path.glob(f".{_SHARD}*.lock")):
        with locked(path, lock.name.removeprefix(".").removesuffix(".lock")):
            pass
