"""Names in a spec: those of tasks, models, precisions and baselines; each mistake has its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache

from mechprobe.experiments.spec import TAKEN, ModelSpec, Spec, SuiteTask, study_baseline
from mechprobe.experiments.yaml_lines import Location
from mechprobe.models.cell import TRANSFORMERS_PRECISIONS, Cell, bits_of_mix
from mechprobe.models.gguf_levels import level_numbers

Mistake = tuple[Location, str]
"""Where it is, and what is wrong."""
_PACKED = re.compile(r"(AWQ|GPTQ)-(INT[1-8]|MIXED)|W(\d+|mixed)A\d+")
_MADE = {"awq": "AWQ-INT4", "gptq": "GPTQ-INT4", "gptq-int8": "GPTQ-INT8"}
"""What a quantizer makes, where its name does not say it."""


def wrong_names(
    spec: Spec,
    lacks: Callable[[Location], bool],
    named: Callable[[int], Collection[str]],
) -> list[Mistake]:
    """Return what is wrong with names of tasks and models, precisions and baselines.

    Args:
        spec: Its fields are right.
        lacks: Whether items of a list are left out.
        named: Precisions of all cells of a model in the text, those that are left out too.
    """
    names = [model.name for model in spec.models]
    found = [*_wrong_tasks(spec, lacks(("tasks", "more")))]
    for i, model in enumerate(spec.models):
        if model.name in names[:i]:
            found.append((("models", i, "name"), f"{model.name} is named twice"))
        wrong = [*_wrong_cells(spec, model, i)]
        found += wrong
        # that a cell is wrong is not said again where it is named as a baseline
        left_out = named(i) if wrong or lacks(("models", i, "cells")) else ()
        found += _wrong_baselines(spec, model, i, left_out)
    return found


def near(name: str, known: Collection[str]) -> str:
    """Return what a message adds about names that a wrong one may stand for; may be empty."""
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
    close = near(label.upper(), known_precisions())
    close = close or "; there are FP16, BF16, AWQ-INT4, GPTQ-INT4, W4A16, F16, Q8_0, Q4_K_M, …"
    return f"{label} is no precision that can be found in a checkpoint{close}"


def _wrong_tasks(spec: Spec, lacking: bool) -> Iterator[Mistake]:
    above: dict[str, SuiteTask] = {}
    for i, task in enumerate(spec.tasks.more):
        at = ("tasks", "more", i)
        other = above.get(task.answers or "")
        if task.label in (*TAKEN, *above):
            yield (at, f"{task.label} is taken; give it another `name`")
        above.setdefault(task.label, task)
        if task.answers is None or (other is None and lacking):
            continue
        if other is None or other.answers:
            yield ((*at, "answers"), f"{task.answers} is no task above this one that takes answers")
            continue
        asks = ("task", "source", "items", "options", "max_new_tokens")
        for name in asks:
            if getattr(task, name) != getattr(other, name):
                yield ((*at, name), f"must be the same as that of {task.answers}")


def _wrong_cells(spec: Spec, model: ModelSpec, i: int) -> Iterator[Mistake]:
    seen: set[str] = set()
    for j, (given, cell) in enumerate(spec.cells(model)):
        at = ("models", i, "cells", j)
        if said := precision_mistake(given.precision):
            yield ((*at, "precision"), said)
            continue
        if cell.key in seen:
            yield ((*at, "precision"), f"{cell.key} is there twice")
        seen.add(cell.key)
        made = _MADE.get(given.quantize or "", given.quantize)
        if made not in (None, cell.precision):
            yield (
                (*at, "quantize"),
                f"{given.quantize} cannot be {cell.precision}; it makes {made}",
            )


def _wrong_baselines(
    spec: Spec, model: ModelSpec, i: int, left_out: Collection[str]
) -> Iterator[Mistake]:
    cells = {cell.key: cell for _, cell in spec.cells(model)}
    if spec.baseline == "study":
        if not left_out and study_baseline(model, list(cells.values())) is None:
            at: Location = ("models", i, "baseline") if model.baseline else ("models", i)
            wanted = model.baseline or "F16, Q8_0, FP16 or BF16"
            yield at, f"baseline: study needs a cell {wanted} of {model.name}"
    elif model.baseline:
        yield ("models", i, "baseline"), "is for `baseline: study`; otherwise cells name theirs"
    circular = False  # all cells of a circle lead back: said once
    for j, (given, cell) in enumerate(spec.cells(model)):
        at = ("models", i, "cells", j, "baseline")
        if given.baseline and spec.baseline == "study":
            yield at, "under `baseline: study` a model names one for all its cells"
        if given.baseline and f"{given.baseline}@{cell.engine}" not in cells:
            # a label that is misspelt in one place is not said to be missing in another
            if given.baseline not in left_out and not near(given.baseline, left_out):
                yield at, f"{given.baseline} is not a cell of {model.name} on {cell.engine}"
        elif not circular and _is_circular(cell, cells):
            circular = True
            yield at, f"a chain of baselines leads back to {cell.precision}"


def _is_circular(cell: Cell, cells: dict[str, Cell]) -> bool:
    seen: set[str] = set()
    at: Cell | None = cell
    while at is not None and at.key not in seen:
        seen.add(at.key)
        at = cells.get(at.baseline_key) if at.baseline_key else None
    return at is not None
