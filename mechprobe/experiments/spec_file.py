"""From a file, or the name of a shipped one, to a checked spec; each mistake is one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mechprobe.errors import SpecError
from mechprobe.experiments.spec import TAKEN, ModelSpec, Spec, SuiteTask, study_baseline
from mechprobe.experiments.yaml_lines import Lines, Location, read_yaml
from mechprobe.models.cell import TRANSFORMERS_PRECISIONS, Cell, bits_of_mix
from mechprobe.models.gguf_levels import level_numbers
from mechprobe.textfiles import read_text

_PACKED = re.compile(r"(AWQ|GPTQ)-(INT[1-8]|MIXED)|W(\d+|mixed)A\d+")
_MADE = {"awq": "AWQ-INT4", "gptq": "GPTQ-INT4", "gptq-int8": "GPTQ-INT8"}
"""What a quantizer makes, where its name does not say it."""
_Kind = TypeVar("_Kind", bound=BaseModel)
_SAID = {
    "extra_forbidden": "unknown field",
    "missing": "this field is missing",
    "tuple_type": "must be a list",
    "too_short": "takes at least {min_length}",
}


@dataclass(frozen=True, slots=True)
class Shipped:
    """A spec that comes with the package."""

    name: str
    about: str
    """Its first comment."""


def shipped_specs(folder: str = "specs") -> tuple[Shipped, ...]:
    """The specs in a folder of the package, sorted by name: what `mechprobe run NAME` knows."""
    found = []
    for entry in files("mechprobe.experiments").joinpath(folder).iterdir():
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found.append(Shipped(entry.name.removesuffix(".yaml"), first.lstrip("# ")))
    return tuple(sorted(found, key=lambda one: one.name))


def spec_text(given: Path | str, folder: str = "specs", kind: str = "spec") -> tuple[str, str]:
    """The text of a spec file, or of a shipped spec by its name, and what messages call it.

    Args:
        given: A path or a name.
        folder: Where the shipped ones lie.
        kind: What they are called.

    Raises:
        SpecError: It cannot be read.
    """
    path, names = Path(given), [one.name for one in shipped_specs(folder)]
    if str(given) in names and not path.is_file():
        text = files("mechprobe.experiments").joinpath(f"{folder}/{given}.yaml")
        return text.read_text(encoding="utf-8"), f"{given}.yaml"
    if not path.exists():
        raise SpecError(
            f"{path}: no such file, and no shipped {kind} is called so; there are "
            f"{', '.join(names)}"
        )
    return read_text(path, SpecError), str(path)


def load_spec(given: Path | str) -> Spec:
    """Read a spec file, or a shipped spec by its name.

    Raises:
        SpecError: It cannot be read or is wrong; see `parse_spec`.
    """
    return parse_spec(*spec_text(given))


def parse_spec(text: str, where: str) -> Spec:
    """Check a spec.

    Args:
        text: YAML.
        where: Its name in messages, a path.

    Raises:
        SpecError: Not YAML, an unknown, missing or repeated field, a wrong type or value, a
            precision that no reader knows, two cells of one name, a baseline that is not a cell
            of the same engine, a chain of baselines that leads back.
    """
    spec, lines = validated(text, where, Spec)
    spec.know(lines)
    check_names(spec, lines)
    return spec


def validated(text: str, where: str, kind: type[_Kind]) -> tuple[_Kind, Lines]:
    """The fields of a spec of this kind, and the line of each.

    Raises:
        SpecError: Not YAML, an unknown, missing or repeated field, a wrong type or value.
    """
    content, lines = read_yaml(text, where)
    if not isinstance(content, dict):
        raise SpecError(f"{where}: a spec is a mapping of fields (name, models, …)")
    try:
        return kind.model_validate(content), lines
    except ValidationError as error:
        raise _mistake(error, kind, lines) from error


def _mistake(error: ValidationError, kind: type[BaseModel], lines: Lines) -> SpecError:
    """The mistakes of a spec of this kind, a line each."""
    found = sorted(error.errors(), key=lambda one: lines.line(one["loc"]) or 0)
    found = [one for one in found if not _follows(one, found)]
    return _all_of(lines.error(one["loc"], _said(one, kind)) for one in found)


def _said(one: ErrorDetails, kind: type[BaseModel]) -> str:
    said = _SAID.get(one["type"], one["msg"][:1].lower() + one["msg"][1:])
    if one["type"] == "too_short":
        said = said.format_map(one["ctx"])
    if one["type"] == "extra_forbidden":
        said += _near(str(one["loc"][-1]), _fields(kind, one["loc"]))
    return said


def _all_of(mistakes: Iterable[SpecError]) -> SpecError:
    return SpecError("\n".join(str(one) for one in mistakes))


def _follows(one: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Whether another mistake is its reason.

    A misspelt field is missing too, and a list too short where what is in it is wrong.
    """
    here = one["loc"]
    if one["type"] == "missing":
        return any(
            other["type"] == "extra_forbidden"
            and other["loc"][:-1] == here[:-1]
            and _near(str(other["loc"][-1]), [str(here[-1])])
            for other in found
        )
    return one["type"] == "too_short" and any(
        other["loc"][: len(here)] == here != other["loc"] for other in found
    )


def check_names(spec: Spec, lines: Lines) -> None:
    """Check names of tasks and models, precisions and baselines.

    Raises:
        SpecError: See `parse_spec`.
    """
    names = [model.name for model in spec.models]
    found = [*_wrong_tasks(spec, lines)]
    for i, model in enumerate(spec.models):
        if model.name in names[:i]:
            found.append(lines.error(("models", i, "name"), f"{model.name} is named twice"))
        # a cell that is wrong is none to name as a baseline
        found += [*_wrong_cells(spec, model, i, lines)] or _wrong_baselines(spec, model, i, lines)
    if found:
        raise _all_of(found)


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


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@cache
def known_precisions() -> tuple[str, ...]:
    """Labels that can be found in the tensors of a checkpoint."""
    from gguf import GGMLQuantizationType

    types = [kind.name for kind in GGMLQuantizationType]
    return tuple(dict.fromkeys([*TRANSFORMERS_PRECISIONS, "FP64", *level_numbers(), *types]))


def precision_mistake(label: str) -> str | None:
    """What is wrong with a label; None where a reader can find it."""
    if label in known_precisions() or _PACKED.fullmatch(label) or bits_of_mix(label):
        return None
    near = _near(label.upper(), list(known_precisions()))
    near = near or "; there are FP16, BF16, AWQ-INT4, GPTQ-INT4, W4A16, F16, Q8_0, Q4_K_M, …"
    return f"{label} is no precision that can be found in a checkpoint{near}"


def _wrong_tasks(spec: Spec, lines: Lines) -> Iterator[SpecError]:
    above: dict[str, SuiteTask] = {}
    for i, task in enumerate(spec.tasks.more):
        at = ("tasks", "more", i)
        other = above.get(task.answers or "")
        if task.label in (*TAKEN, *above):
            yield lines.error(at, f"{task.label} is taken; give it another `name`")
        above.setdefault(task.label, task)
        if task.answers is None:
            continue
        if other is None or other.answers:
            yield lines.error(
                (*at, "answers"), f"{task.answers} is no task above this one that takes answers"
            )
            continue
        asks = ("task", "source", "items", "options", "max_new_tokens")
        for name in asks:
            if getattr(task, name) != getattr(other, name):
                yield lines.error((*at, name), f"must be the same as that of {task.answers}")


def _wrong_cells(spec: Spec, model: ModelSpec, i: int, lines: Lines) -> Iterator[SpecError]:
    seen: set[str] = set()
    for j, (given, cell) in enumerate(spec.cells(model)):
        at = ("models", i, "cells", j)
        if said := precision_mistake(given.precision):
            yield lines.error((*at, "precision"), said)
            continue
        if cell.key in seen:
            yield lines.error((*at, "precision"), f"{cell.key} is there twice")
        seen.add(cell.key)
        made = _MADE.get(given.quantize or "", given.quantize)
        if made not in (None, cell.precision):
            yield lines.error(
                (*at, "quantize"), f"{given.quantize} cannot be {cell.precision}; it makes {made}"
            )


def _wrong_baselines(spec: Spec, model: ModelSpec, i: int, lines: Lines) -> Iterator[SpecError]:
    cells = {cell.key: cell for _, cell in spec.cells(model)}
    if spec.baseline == "study":
        if study_baseline(model, list(cells.values())) is None:
            at: Location = ("models", i, "baseline") if model.baseline else ("models", i)
            wanted = model.baseline or "F16, Q8_0, FP16 or BF16"
            yield lines.error(at, f"baseline: study needs a cell {wanted} of {model.name}")
    elif model.baseline:
        yield lines.error(
            ("models", i, "baseline"), "is for `baseline: study`; otherwise cells name theirs"
        )
    circular = False  # all cells of a circle lead back: said once
    for j, (given, cell) in enumerate(spec.cells(model)):
        at = ("models", i, "cells", j, "baseline")
        if given.baseline and spec.baseline == "study":
            yield lines.error(at, "under `baseline: study` a model names one for all its cells")
        if given.baseline and f"{given.baseline}@{cell.engine}" not in cells:
            yield lines.error(
                at, f"{given.baseline} is not a cell of {model.name} on {cell.engine}"
            )
        elif not circular and _is_circular(cell, cells):
            circular = True
            yield lines.error(at, f"a chain of baselines leads back to {cell.precision}")


def _is_circular(cell: Cell, cells: dict[str, Cell]) -> bool:
    seen: set[str] = set()
    at: Cell | None = cell
    while at is not None and at.key not in seen:
        seen.add(at.key)
        at = cells.get(at.baseline_key) if at.baseline_key else None
    return at is not None
