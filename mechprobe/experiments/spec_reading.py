"""From the text of a spec to its values, its mistakes, and what can be read beside a mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mechprobe.errors import SpecError
from mechprobe.experiments.spec import Placed, Spec
from mechprobe.experiments.spec_names import near, wrong_names
from mechprobe.experiments.yaml_lines import Lines, Location, read_yaml

Kind = TypeVar("Kind", bound=Placed)
_SAID = {
    "extra_forbidden": "unknown field",
    "missing": "this field is missing",
    "tuple_type": "must be a list",
    "too_short": "takes at least {min_length}",
}


@dataclass(frozen=True, slots=True)
class Reading(Generic[Kind]):
    """What a text says."""

    spec: Kind | None
    """All of it, or what is left beside the mistakes; None where nothing can be used."""
    mistakes: tuple[SpecError, ...]
    """A line each."""

    def require_right(self) -> Kind:
        """Return the whole spec.

        Raises:
            SpecError: One line for each mistake.
        """
        if self.mistakes or self.spec is None:
            raise SpecError("\n".join(map(str, self.mistakes)))
        return self.spec


def read_spec(
    text: str, where: str, kind: type[Kind], matrix: Callable[[Kind], Spec]
) -> Reading[Kind]:
    """Read a spec; a cell, model or task with a mistake is left out of what can be used.

    Args:
        text: YAML.
        where: Its name in messages, a path.
        kind: Of spec.
        matrix: From a spec to its models and cells.
    """
    try:
        content, lines = read_yaml(text, where)
    except SpecError as error:
        return Reading(None, (error,))
    if not isinstance(content, dict):
        said = SpecError(f"{where}: a spec is a mapping of fields (name, models, …)")
        return Reading(None, (said,))
    mistakes: list[tuple[int, SpecError]] = []
    left_out: set[Location] = set()
    named = False
    while True:
        part, here = lines.without(content, left_out)
        spec = None
        try:
            spec = kind.model_validate(kind.STAND_INS | part if left_out else part)
        except ValidationError as error:
            found = [e for e in error.errors() if not _follows(e, error.errors())]
            wrong = [(e["loc"], _said(e, kind)) for e in found]
            new = not left_out  # afterwards it is missing because it was left out
            dropped = {_unusable(here.original(e["loc"]), e["type"]) for e in found}
        else:
            wrong = wrong_names(matrix(spec), here.lacks, partial(_precisions, content, here))
            new, named = not named, True
            dropped = {_unusable(here.original(at)) for at, _ in wrong}
        if new:
            mistakes += [(here.line(at) or 0, here.error(at, said)) for at, said in wrong]
        if spec is not None and not dropped:
            spec.know(here)
            break
        if dropped <= left_out:
            spec = None
            break
        left_out |= dropped
    return Reading(spec, tuple(one for _, one in sorted(mistakes, key=lambda each: each[0])))


def _precisions(content: dict[str, Any], here: Lines, model: int) -> set[str]:
    """What a model's cells are labelled in the text."""
    number = here.original(("models", model))[1]
    cells = content["models"][number]["cells"]
    return {str(cell.get("precision")) for cell in cells if isinstance(cell, dict)}


def _unusable(location: Location, kind: str = "") -> Location:
    """What is left out for a mistake: the field, or the cell, model or task that needs it."""
    items = [n for n, part in enumerate(location) if isinstance(part, int)]
    whole = kind in ("missing", "extra_forbidden") or "cells" in location or "more" in location
    if items and whole and location[-1] != "baseline":
        return location[: items[-1] + 1]
    return location


def _said(one: ErrorDetails, kind: type[BaseModel]) -> str:
    said = _SAID.get(one["type"], one["msg"][:1].lower() + one["msg"][1:])
    if one["type"] == "too_short":
        said = said.format_map(one["ctx"])
    if one["type"] == "extra_forbidden":
        said += near(str(one["loc"][-1]), _fields(kind, one["loc"]))
    return said


def _follows(one: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Whether another mistake is its reason.

    A misspelt field is missing too, and a list too short where what is in it is wrong.
    """
    here = one["loc"]
    if one["type"] == "missing":
        return any(
            other["type"] == "extra_forbidden"
            and other["loc"][:-1] == here[:-1]
            and near(str(other["loc"][-1]), [str(here[-1])])
            for other in found
        )
    return one["type"] == "too_short" and any(
        other["loc"][: len(here)] == here != other["loc"] for other in found
    )


def _fields(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that there are where an unknown one was found."""
    schema = kind.model_json_schema()
    at = schema
    for part in location[:-1]:
        at = (
            at.get("items", {}) if isinstance(part, int) else at.get("properties", {}).get(part, {})
        )
        options = [at, *at.get("anyOf", ())]
        named = next((o["$ref"].split("/")[-1] for o in options if "$ref" in o), None)
        if named is not None:
            at = schema["$defs"][named]
    return list(at.get("properties", ()))
