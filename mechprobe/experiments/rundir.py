"""The run directory: the whole truth of a run, readable with pandas, h5py and a text editor.

Every file is written beside its place, synced, and renamed into it, so that whatever is there
is whole. A journal holds the finished batches of a step that is still running.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import RunDirectoryError
from mechprobe.journal import FULL_DISK as FULL_DISK
from mechprobe.journal import Journal as Journal
from mechprobe.journal import explained as explained
from mechprobe.journal import write_bytes as write_bytes
from mechprobe.journal import write_text as write_text
from mechprobe.textfiles import MalformedError, parse_json, read_text


def dump_json(value: Any) -> str:
    """JSON for people: indented, keys in the order given, no NaN (a missing number is null)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
