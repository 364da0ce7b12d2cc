"""Tasks by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechprobe.behavior.tasks.bbq import load_bbq
from mechprobe.behavior.tasks.choice import load_choice
from mechprobe.behavior.tasks.jailbreak import load_jailbreak
from mechprobe.behavior.tasks.reference import load_reference
from mechprobe.behavior.tasks.requests import load_over_refusal, load_refusal
from mechprobe.behavior.tasks.task import Task
from mechprobe.behavior.tasks.truthfulqa import load_truthfulqa
from mechprobe.errors import SpecError

Loader = Callable[..., Task]

_UNKNOWN = re.compile(r"(?:unexpected keyword argument|multiple values for argument) '(\w+)'")
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


def load_task(name: str, source: str | Path | None = None, **options: Any) -> Task:
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
    try:
        return load(**options) if source is None else load(source, **options)
    except (TypeError, ValueError) as error:
        if not options:
            raise
        unknown = _UNKNOWN.search(str(error))
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        what = f"no option {unknown[1]!r}" if unknown else "an option has a wrong value"
        raise SpecError(f"{name}: {what}, of {given}; see docs/tasks.md") from error


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
