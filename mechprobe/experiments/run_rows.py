"""Rows of a run directory's files, typed where they are read.

A file that the run vouches for cannot be otherwise; one of a directory that was copied without its
markers can be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.rundir import read_json, read_jsonl
from mechprobe.experiments.yaml_lines import field_name

_OPEN = ConfigDict(strict=True, extra="allow")
_Text = Annotated[str, StringConstraints(min_length=1)]


@with_config(_OPEN)
class _Scored(TypedDict):
    instrument: _Text


@with_config(_OPEN)
class _Task(_Scored):
    task: _Text


@with_config(_OPEN)
class CellFacts(TypedDict, total=False):
    """What tables and analysis read of cell.json."""

    refusal: _Scored | None
    multiple_choice: dict[str, Any] | None
    tasks: dict[_Text, _Task] | None
    judges: dict[_Text, dict[_Text, Any] | list[_Text]] | None
    not_measured: dict[str, str] | None
    baseline: str | None


@with_config(_OPEN)
class RefusalRow(TypedDict):
    """A line of scores/refusal.jsonl; each instrument has a field of its own, true or false."""

    id: str
    label: Literal["harmful", "harmless"]
    unread: bool


@with_config(_OPEN)
class ChoiceRow(TypedDict):
    """A line of scores/multiple_choice.jsonl."""

    id: str
    correct: bool


@with_config(_OPEN)
class TaskRow(TypedDict):
    """A line of the scores of any other task."""

    item: str
    sample: int
    cluster: str
    instrument: str
    value: Annotated[float, Field(allow_inf_nan=False)] | None
    outcome: NotRequired[str]


@with_config(_OPEN)
class AnswerRow(TypedDict):
    """A line of generations/TASK.jsonl."""

    id: str
    text: str
    ids: list[int]


@with_config(_OPEN)
class PromptRow(TypedDict):
    """A line of prompts/MODEL.jsonl."""

    set: str
    id: str


def read_facts(folder: Path) -> dict[str, Any]:
    """What cell.json of a cell's folder says.

    Raises:
        RunDirectoryError: It is missing or damaged.
    """
    file = folder / "cell.json"
    facts = read_json(file)
    _check(file, CellFacts, facts)
    return facts


def read_typed(file: Path, kind: type) -> list[dict[str, Any]]:
    """The lines of a file, each of one kind.

    Raises:
        RunDirectoryError: It is missing, or a line is damaged; its field is named.
    """
    rows = read_jsonl(file)
    _check(file, list[kind], rows)  # type: ignore[valid-type]
    return rows


def flags(file: Path, row: Mapping[str, Any]) -> dict[str, bool]:
    """How each instrument reads an answer.

    Raises:
        RunDirectoryError: An instrument's field is neither true nor false.
    """
    known = ("id", "label", "prompts", "oracle", "unread")
    found = {name: value for name, value in row.items() if name not in known}
    if wrong := next((name for name, value in found.items() if not isinstance(value, bool)), None):
        raise _damaged(file, f"{row['id']}: {wrong} is neither true nor false")
    return {name: bool(value) for name, value in found.items()}


def _check(file: Path, kind: Any, value: Any) -> None:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place, where = first["loc"], ""
        if isinstance(value, list) and place:
            where, place = f"line {int(place[0]) + 1}, ", place[1:]
        name = field_name(tuple(place)) if place else "all of it"
        raise _damaged(file, f"{where}{name}: {first['msg'].lower()}") from error


def _damaged(file: Path, said: str) -> RunDirectoryError:
    return RunDirectoryError(f"{file}: damaged ({said}); run the same command again")


def refusal_clusters(path: Path) -> dict[str, str]:
    """Of each prompt of the refusal task, by id, the group of prompts that it belongs to.

    Args:
        path: A model's prompts, as the run rendered them.
    """
    rows = read_typed(path, PromptRow) if path.exists() else []
    mine = [row for row in rows if row["set"] == "refusal"]
    return {row["id"]: str(row.get("cluster") or row["id"]) for row in mine}
