"""Files written whole, and a journal of finished work that survives `kill -9`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import RunDirectoryError
from mechprobe.textfiles import parse_json

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line.

    Raises:
        RunDirectoryError: Anything the file system refused inside the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            what = "the disk is full; free some space and run the same command again"
        else:
            reason = (error.strerror or str(error)).lower()
            what = f"cannot be used ({reason}); mend that or choose another folder (--out)"
        raise RunDirectoryError(f"{path}: {what}") from error


def sync(path: Path) -> None:
    """Have the disk hold what was written of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file so that `path` holds either its old content or all of the new.

    Raises:
        RunDirectoryError: The disk is full or the folder is not writable; nothing is left behind.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


@dataclass(frozen=True, slots=True)
class Journal:
    """Finished batches of one step, appended as they finish; survives kill -9.

    The first line holds the step's key: another key means other inputs, and the batches are void.
    """

    path: Path
    key: str

    def read(self) -> list[list[dict[str, Any]]]:
        """Whole batches of this key, in order; a torn last line is dropped."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        if lines[0] != self.key.encode():
            return []
        batches: list[list[dict[str, Any]]] = []
        for line in lines[1:-1]:  # what follows the last newline is empty or torn
            try:
                batch = parse_json(line.decode())
            except ValueError:  # no UTF-8, or no JSON
                break
            if not isinstance(batch, list) or not all(isinstance(row, dict) for row in batch):
                break
            batches.append(batch)
        return batches

    def rewrite(self, batches: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Start the file anew with these batches."""
        lines = [self.key, *(json.dumps(batch, ensure_ascii=False) for batch in batches)]
        write_text(self.path, "\n".join(lines) + "\n")

    def append(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Add one finished batch and sync it to the disk."""
        with explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(batch, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove the journal; its step is done."""
        self.path.unlink(missing_ok=True)
