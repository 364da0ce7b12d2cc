"""Rows of a user's file, each with the place it stands at, so that a message can name the line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe import textfiles
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
    return textfiles.read_text(path, PromptFileError, name)


def json_lines(text: str, name: str, *, unpaired: bool = False) -> Iterator[Record]:
    """The object of each line that is not blank.

    Args:
        text: The lines.
        name: What messages call their file.
        unpaired: Accept half a surrogate pair; see `textfiles.parse_json`.

    Raises:
        PromptFileError: A line is no JSON object, or has a field twice.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record(_content(line, name, number, unpaired), f"{name}, line {number}")


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


def _content(text: str, name: str, first: int = 1, unpaired: bool = False) -> Any:
    """JSON that begins on the line `first` of a file."""
    try:
        return textfiles.parse_json(text, unpaired=unpaired, unique=True)
    except textfiles.MalformedError as error:
        raise PromptFileError(error.at(name, first)) from error


def _record(item: Any, where: str) -> Record:
    if not isinstance(item, dict):
        raise PromptFileError(f"{where}: needs an object")
    return Record(where, item)
