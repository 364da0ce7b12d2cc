"""Rows of a user's file, each with the place it stands at, so that a message can name the line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mechprobe.errors import PromptFileError

_LONG = re.compile(r"\d{4301,}")
"""A number of more digits than Python reads."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table."""

    where: str
    """File and line, for messages."""
    fields: dict[str, Any]


def sample_of(record: Record) -> int:
    """Which sample of its prompt a line is of; 0 where it does not say.

    Raises:
        PromptFileError: What it says is no whole number.
    """
    given = record.fields.get("sample") or 0
    try:
        if isinstance(given, float) and not given.is_integer():
            raise ValueError
        return int(given)
    except (TypeError, ValueError) as error:
        raise PromptFileError(
            f"{record.where}: 'sample' needs a whole number, not {given!r}"
        ) from error


def read_text(path: Path, name: str | None = None) -> str:
    """A file as UTF-8, without a byte-order mark.

    Args:
        path: The file.
        name: What messages call it.

    Raises:
        PromptFileError: It is missing, unreadable or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{name or path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise PromptFileError(f"{name or path}: cannot be read: {error.strerror}") from error


def parse_json(text: str) -> Any:
    """Read JSON.

    Raises:
        json.JSONDecodeError: It is none, or holds what Python does not read: a number of thousands
            of digits, or lists that lie in each other too deep.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        depths = accumulate((mark in "[{") - (mark in "]}") for mark in text)
        deepest, _ = max(enumerate(depths), key=lambda at: at[1])
        raise json.JSONDecodeError("nested too deep", text, deepest) from error
    except ValueError as error:
        found = _LONG.search(text)
        at = found.start() if found else 0
        raise json.JSONDecodeError("a number has too many digits", text, at) from error


def json_lines(text: str, name: str) -> Iterator[Record]:
    """The object of each line that is not blank.

    Raises:
        PromptFileError: A line is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record(_content(line, name, number), f"{name}, line {number}")


def json_array(text: str, name: str) -> Iterator[Record]:
    """The objects of an array.

    Raises:
        PromptFileError: It is no JSON, no array, or an item is no object.
    """
    content = _content(text, name)
    if not isinstance(content, list):
        raise PromptFileError(f"{name}: needs a JSON array of objects")
    yield from objects(content, name)


def objects(items: Iterable[Any], name: str) -> Iterator[Record]:
    """Items, counted from 0.

    Raises:
        PromptFileError: One is no mapping.
    """
    for number, item in enumerate(items):
        yield _record(item, f"{name}, item {number}")


def _content(text: str, name: str, first: int = 1) -> Any:
    """JSON that begins on the line `first` of a file."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise PromptFileError(f"{name}, line {line}: not JSON: {error.msg}") from error


def _record(item: Any, where: str) -> Record:
    if not isinstance(item, dict):
        raise PromptFileError(f"{where}: needs an object")
    return Record(where, item)
