"""Generations in, judgements out: JSONL files, each line checked where it stands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mechprobe.behavior.judges.base import LABELS, Exchange, Judgement
from mechprobe.behavior.records import Record, json_lines, read_text, sample_of
from mechprobe.behavior.refusal import RefusalLabel
from mechprobe.errors import PromptFileError

_T = TypeVar("_T")
_REQUESTS = ("", "harmful", "harmless")


def read_exchanges(
    path: Path,
    *,
    task: str = "",
    row: str = "",
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Exchange]:
    """Read a file of generations.

    Args:
        path: One JSON object a line: `id`, `text`, and `prompt` unless `prompts` has it; `task`,
            `row`, `sample`, `label` (`harmful`, `harmless`) and `cluster` where there are any.
        task: Of lines that name none.
        row: The cell of lines that name none.
        prompts: By id, `text` and `cluster` of prompts that the lines do not repeat.

    Raises:
        PromptFileError: The file cannot be read, holds nothing, or a line is malformed; file and
            line are named.
    """
    known = prompts or {}

    def exchange(record: Record) -> Exchange:
        line = record.fields
        name = _name(line, "id")
        about = known.get(name, {})
        prompt = line.get("prompt", about.get("text"))
        if not isinstance(prompt, str):
            raise ValueError("the field 'prompt' is missing, or is no text")
        if not isinstance(line["text"], str):
            raise ValueError("the field 'text' is no text")
        request = line.get("label", about.get("label")) or ""
        if request not in _REQUESTS:
            raise ValueError(f"the label {request!r} is neither harmful nor harmless")
        return Exchange(
            name,
            _encodable(prompt),
            _encodable(line["text"]),
            _name(line, "task", task),
            _name(line, "row", row),
            sample_of(record),
            request,
            _name(line, "cluster", _name(about, "cluster", name)),
        )

    return _read(path, exchange)


def read_judgements(path: Path) -> list[Judgement]:
    """Read what `mechprobe judge` wrote.

    Raises:
        PromptFileError: The file cannot be read, holds nothing, or a line is malformed.
    """
    names = [field.name for field in fields(Judgement)]
    typed = TypeAdapter(Judgement)

    def judgement(record: Record) -> Judgement:
        line = {name: record.fields[name] for name in names}
        if line["label"] is not None and line["label"] not in LABELS:
            raise ValueError(f"the label {line['label']!r} is none of {', '.join(LABELS)}")
        try:
            return typed.validate_json(json.dumps(line), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = first["loc"][0] if first["loc"] else "of a number"
            raise ValueError(f"the field {place!r}: {first['msg'].lower()}") from error

    return _read(path, judgement)


def read_truth(path: Path) -> dict[tuple[str, str, str, int], RefusalLabel]:
    """Read right labels: `id` and `label`, one of the four; `task`, `row`, `sample` if any.

    Returns:
        The label by task, row, id and sample.

    Raises:
        PromptFileError: The file cannot be read, holds nothing, or a line is malformed.
    """
    found: dict[tuple[str, str, str, int], RefusalLabel] = {}

    def labelled(record: Record) -> None:
        line = record.fields
        if line["label"] not in LABELS:
            raise ValueError(f"the label {line['label']!r} is none of {', '.join(LABELS)}")
        key = (
            _name(line, "task", ""),
            _name(line, "row", ""),
            _name(line, "id"),
            sample_of(record),
        )
        if found.setdefault(key, line["label"]) != line["label"]:
            raise ValueError(f"{line['id']!r} has another label above: {found[key]}")

    _read(path, labelled)
    return found


def _encodable(text: str) -> str:
    """Text that UTF-8 can carry: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _name(line: Mapping[str, Any], field: str, missing: str | None = None) -> str:
    """A name as text; `missing` where the line gives none: no such field, null, NaN or "".

    Half a surrogate pair is refused: two names must not become one.
    """
    value = line[field] if missing is None else line.get(field)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        if missing is None:
            raise ValueError(f"the field {field!r} is empty")
        return missing
    if not isinstance(value, str | int | float):
        raise ValueError(f"the field {field!r} is no name; write a text or a number")
    name = str(value)
    if name != _encodable(name):
        raise ValueError(f"the field {field!r} holds half a character, which no file can carry")
    return name


def _read(path: Path, parse: Callable[[Record], _T]) -> list[_T]:
    found = []
    for record in json_lines(read_text(path), str(path), unpaired=True):
        try:
            found.append(parse(record))
        except KeyError as error:
            raise PromptFileError(
                f"{record.where}: the field {error.args[0]!r} is missing"
            ) from error
        except (ValueError, TypeError) as error:
            raise PromptFileError(f"{record.where}: {error}") from error
    if not found:
        raise PromptFileError(f"{path}: empty; at least one line is needed")
    return found
