"""Rows of a user's file, each with the place it stands at, so that a message can name the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import PromptFileError


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


def json_lines(text: str, name: str) -> Iterator[Record]:
    """The object of each line that is not blank.

    Raises:
        PromptFileError: A line is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptFileError(f"{where}: not JSON: {error.msg}") from error
        if not isinstance(fields, dict):
            raise PromptFileError(f"{where}: needs a JSON object")
        yield Record(where, fields)


def json_array(text: str, name: str) -> Iterator[Record]:
    """The objects of an array.

    Raises:
        PromptFileError: It is no JSON, no array, or an item is no object.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptFileError(f"{name}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(content, list):
        raise PromptFileError(f"{name}: needs a JSON array of objects")
    yield from objects(content, name)


def objects(items: Iterable[Any], name: str) -> Iterator[Record]:
    """Items, counted from 0.

    Raises:
        PromptFileError: One is no mapping.
    """
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise PromptFileError(f"{name}, item {number}: needs an object")
        yield Record(f"{name}, item {number}", item)
