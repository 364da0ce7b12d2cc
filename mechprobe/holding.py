"""One process at a time in a folder: a lock that the system frees however the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mechprobe.errors import RunDirectoryError
from mechprobe.textfiles import parse_json


@contextlib.contextmanager
def locked(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock inside a folder.

    Args:
        path: The folder.
        what: Name of the lock.
        wait: Seconds to wait for it.

    Raises:
        RunDirectoryError: Another process holds it; the message says which.
    """
    with try_locked(path, what, wait) as mine:
        if not mine:
            raise RunDirectoryError(f"{path}: in use by {holder(path, what)}")
        yield


@contextlib.contextmanager
def try_locked(path: Path, what: str, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock if nobody else does: yields whether it is ours; see `locked`.

    Raises:
        OSError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / f".{what}.lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        yield False
        return
    name = _holder_file(path, what)
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        name.write_text(json.dumps(mine) + "\n", encoding="utf-8")
        yield True
    finally:
        name.unlink(missing_ok=True)
        lock.release()


def holder(path: Path, what: str) -> str:
    """Who holds a lock, and what to do about it; for the end of an error's line."""
    who = "another process"
    try:
        held = parse_json(_holder_file(path, what).read_text(encoding="utf-8"))
        who = f"process {held['pid']} on {held['host']} since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"{who}; wait for it or choose another folder (--out)"


def _holder_file(path: Path, what: str) -> Path:
    return path / f".{what}.holder.json"
