"""What a judge said before, by content: an append-only file that a kill cannot spoil.

Each line is one paid reply, written and synced as it arrives. It holds digests and labels, never a
prompt or an answer; the judge's own words only where they were asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mechprobe.behavior.judges.base import LABELS, Opinion
from mechprobe.behavior.refusal import RefusalLabel
from mechprobe.errors import JudgeError
from mechprobe.textfiles import parse_json


@dataclass(slots=True)
class Entry:
    """All that one judge said of one content."""

    label: RefusalLabel | None = None
    asked: int = 0
    """Replies that were paid for."""
    served: str = ""


@dataclass(slots=True)
class JudgeCache:
    """Entries by key; see `opened`."""

    entries: dict[str, Entry] = field(default_factory=dict)
    keep_replies: bool = False
    _file: IO[bytes] | None = None

    def get(self, key: str) -> Entry:
        """What is known of a key."""
        return self.entries.get(key, Entry())

    def add(self, key: str, judge: str, opinion: Opinion) -> None:
        """Record one reply. An error is no reply, and is not recorded.

        Raises:
            JudgeError: The file cannot be written.
        """
        if opinion.status == "error":
            return
        _take(self.entries, key, opinion.label, opinion.served)
        if self._file is None:
            return
        line: dict[str, Any] = {
            "key": key,
            "judge": judge,
            "label": opinion.label,
            "served": opinion.served,
            "tokens": [opinion.prompt_tokens, opinion.completion_tokens],
        }
        if self.keep_replies:
            line["reply"] = opinion.reply
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JudgeError(
                f"{self._file.name}: cannot be written ({error.strerror}); what was judged before "
                "is kept, run the same command again"
            ) from error


@contextmanager
def opened(
    path: Path | None, *, keep_replies: bool = False, patience: float = 0.0
) -> Iterator[JudgeCache]:
    """Read a cache and hold it for adding.

    Args:
        path: A JSONL file, made when missing; None keeps everything in memory.
        keep_replies: Whether the judge's own words are written too.
        patience: Seconds to wait for another process that judges into it.

    Raises:
        JudgeError: Another process judges into it, or it cannot be used.
    """
    if path is None:
        yield JudgeCache(keep_replies=keep_replies)
        return
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=patience)
            stack.enter_context(lock)
            file = stack.enter_context(path.open("a+b"))
            entries = _read(file)
        except Timeout as error:
            raise JudgeError(
                f"{path}: another process judges into it; wait for that or name another (--cache)"
            ) from error
        except OSError as error:
            raise JudgeError(
                f"{path}: cannot be used ({error.strerror}); name another (--cache)"
            ) from error
        yield JudgeCache(entries, keep_replies, file)


def _take(entries: dict[str, Entry], key: str, label: Any, served: str) -> None:
    entry = entries.setdefault(key, Entry())
    entry.asked += 1
    entry.served = served
    if label in LABELS:
        entry.label = label


def _read(file: IO[bytes]) -> dict[str, Entry]:
    """Every whole line; the one that a kill tore is cut off, so that the next starts afresh."""
    file.seek(0)
    content = file.read()
    whole = content.rpartition(b"\n")[0]
    file.truncate(len(whole) + 1 if whole else 0)
    entries: dict[str, Entry] = {}
    for line in whole.splitlines():
        try:
            found = parse_json(line.decode(), unpaired=True)
            _take(entries, found["key"], found["label"], found["served"])
        except (ValueError, KeyError, TypeError):
            continue  # a damaged line costs one question
    return entries
