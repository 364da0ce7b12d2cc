"""Tasks by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from mechprobe.behavior.tasks.bbq import load_bbq
from mechprobe.behavior.tasks.choice import load_choice
from mechprobe.behavior.tasks.jailbreak import load_jailbreak
from mechprobe.behavior.tasks.reference import load_reference
from mechprobe.behavior.tasks.requests import load_over_refusal, load_refusal
from mechprobe.behavior.tasks.task import Task
from mechprobe.behavior.tasks.truthfulqa import load_truthfulqa
from mechprobe.errors import SpecError

Loader = Callable[..., Task]

_UNKNOWN = ("unexpected_keyword_argument", "multiple_argument_values")
_QUOTED = 40
"""Characters of a value that a message quotes at most."""
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_REGISTRY: dict[str, Loader] = {}


def register_task(name: str, load: Loader) -> None:
    """Make a task known by its name.

    Args:
        name: What `load_task` is given.
        load: From a source, and options of its own, to a task.

    Raises:
        SpecError: The name is taken.
    """
    if name in _REGISTRY:
        raise SpecError(f"a task named {name!r} exists already")
    _REGISTRY[name] = load


def task_names() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(_REGISTRY)


def load_task(name: str, source: str | Path | None = None, /, **options: Any) -> Task:
    """A task's items from a source.

    Args:
        name: `refusal`, `jailbreak`, `over_refusal`, `truthfulqa`, `bbq`, `multiple_choice`,
            `reference`, or one that was registered.
        source: A path, `builtin`, `organism`, `hf-dataset:ORG/NAME@COMMIT/FILE`; without one the
            task's own default.
        options: Of the task's loader.

    Raises:
        PromptFileError: The source cannot be read, or none is named and the task has no default.
        SpecError: There is no such task, or an option is none of its or has a wrong value.
    """
    if name not in _REGISTRY:
        raise SpecError(f"unknown task {name!r}; there are {', '.join(task_names())}")
    load = _REGISTRY[name]
    given = () if source is None else (source,)
    _check(name, load, given, options)
    return load(*given, **options)


def _check(
    name: str, load: Loader, given: tuple[str | Path, ...], options: Mapping[str, Any]
) -> None:
    """Hold options against the parameters of a loader and their types, without calling it.

    Raises:
        SpecError: An option is none of the loader's or has a wrong value.
    """

    @wraps(load)
    def like(*args: Any, **kwargs: Any) -> None:
        """Take what the loader takes."""

    for option, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(name, option, value, "input should be a finite number")
    if not options:
        return
    try:
        validate_call(config=_STRICT)(like)(*given, **options)
    except NameError:  # of types that are imported for type checkers alone
        return
    except ValidationError as error:
        (first, *_) = error.errors()
        option, said = str(first["loc"][0]), first["msg"]
        if first["type"] in _UNKNOWN:
            raise SpecError(f"{name}: no option {option!r}; see docs/tasks.md") from error
        said = said[:1].lower() + said[1:]
        raise _wrong(name, option, options.get(option), said) from error


def _wrong(name: str, option: str, value: Any, said: str) -> SpecError:
    shown = repr(value)
    shown = shown if len(shown) <= _QUOTED else f"{shown[: _QUOTED - 1]}…"
    return SpecError(f"{name}: option {option!r} is {shown}: {said}; see docs/tasks.md")


for _name, _load in (
    ("refusal", load_refusal),
    ("over_refusal", load_over_refusal),
    ("jailbreak", load_jailbreak),
    ("truthfulqa", load_truthfulqa),
    ("bbq", load_bbq),
    ("multiple_choice", load_choice),
    ("reference", load_reference),
):
    register_task(_name, _load)
