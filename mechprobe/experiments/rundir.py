"""The run directory: the whole truth of a run, readable with pandas, h5py and a text editor.

Every file is written beside its place, synced, and renamed into it, so that whatever is there
is whole. A journal holds the finished batches of a step that is still running.
"""

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
from mechprobe.textfiles import MalformedError, parse_json, read_text

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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
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
        _sync_folder(path.parent)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def dump_json(value: Any) -> str:
    """JSON for people: indented, keys in the order given, no NaN (a missing number is null)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """`write_bytes` of `dump_json`."""
    return write_text(path, dump_json(value))


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """`write_bytes` of one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return write_text(path, "".join(lines))


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote.

    Raises:
        RunDirectoryError: The file is missing, or is not a JSON object.
    """
    found = _parsed(read_text(path, _unreadable), path)
    if not isinstance(found, dict):
        raise _damaged(path, 1, "needs an object")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote.

    Raises:
        RunDirectoryError: The file is missing, or a line is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    # `splitlines` would also cut at U+2028, U+0085 and the like, which JSON leaves
    for number, line in enumerate(read_text(path, _unreadable).split("\n"), 1):
        row = _parsed(line, path, number) if line else {}
        if not isinstance(row, dict):
            raise _damaged(path, number, "needs an object")
        rows += [row] if line else []
    return rows


def _parsed(text: str, path: Path, first: int = 1) -> Any:
    try:
        return parse_json(text)
    except MalformedError as error:
        raise _damaged(path, error.line + first - 1, str(error)) from error


def _damaged(path: Path, line: int, said: str) -> RunDirectoryError:
    return RunDirectoryError(f"{path}: damaged (line {line}: {said}); delete it and run again")


def _unreadable(said: str) -> RunDirectoryError:
    return RunDirectoryError(f"{said}; run the same command again")


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


def spec_files(path: Path) -> tuple[Path, Path]:
    """Of a run directory: the spec for people, and the copy that vouches for it."""
    return path / "spec.yaml", path / ".steps" / "spec.yaml"


def held_spec(path: Path) -> str | None:
    """Text of the spec that a run directory belongs to; None where it has none."""
    there = [file for file in reversed(spec_files(path)) if file.exists()]
    return there[0].read_text(encoding="utf-8", errors="replace") if there else None


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run; see `locks.opened` for how one is made and locked."""

    path: Path

    def __truediv__(self, part: str) -> Path:
        """A path inside the run."""
        return self.path / part

    def cell(self, model: str, key: str) -> Path:
        """The folder of one cell."""
        return self.path / "cells" / model / key

    def prompts(self, model: str) -> Path:
        """The rendered prompts of one model."""
        return self.path / "prompts" / f"{model}.jsonl"

    def marker(self, step: str) -> Path:
        """What says that a step is done; written last."""
        return self.path / ".steps" / f"{step}.json"

    def failure(self, step: str) -> Path:
        """What says that a step failed, and how."""
        return self.path / ".steps" / f"{step}.error.json"

    def journal(self, step: str, key: str) -> Journal:
        """The batches that a running step has finished."""
        return Journal(self.path / ".steps" / f"{step}.journal", key)
