"""The step that reads a finished matrix: `analysis.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mechprobe.errors import RunDirectoryError, TableError
from mechprobe.experiments.derived import code_digest
from mechprobe.experiments.integrity import (
    read_spec,
    require_recorded,
    require_unchanged,
    unrecorded,
)
from mechprobe.experiments.rundir import write_json
from mechprobe.experiments.spec import Analysis, Spec
from mechprobe.experiments.steps import Step
from mechprobe.experiments.yaml_lines import field_name

if TYPE_CHECKING:
    from mechprobe.experiments.steps import Task

_ACCURACY = "accuracy"


def analysis_step(spec: Spec, tables: str) -> Step:
    """The step, after that of the tables.

    Raises:
        SpecError: The measure or an instrument that the spec names is not of this matrix.
    """
    from mechprobe.behavior.refusal import instrument_names

    given = spec.analysis
    labels = [task.label for task in spec.tasks.more]
    named = given.quality or ""
    known = [*([_ACCURACY] if spec.tasks.multiple_choice else []), *(f"{x}_…" for x in labels)]
    if (
        named
        and not (named == _ACCURACY and spec.tasks.multiple_choice)
        and not any(named.startswith(f"{label}_") for label in labels)
    ):
        raise spec.mistake(
            ("analysis", "quality"),
            f"{named} is no measure of this spec; there are: {', '.join(known) or 'none'}",
        )
    judges = [one.judge for one in (*(spec.tasks.judges or ()), spec.tasks.second) if one]
    if spec.tasks.judges is None and spec.prompts.source == "organism":
        judges.append("oracle")
    for field, readers in (
        ("instrument", instrument_names()),
        ("second_instrument", (*instrument_names(), *judges)),
    ):
        name = getattr(given, field)
        if name and name not in readers:
            raise spec.mistake(
                ("analysis", field),
                f"{name} reads no refusals here; there are: {', '.join(readers)}",
            )
    own = spec.tasks.refusal.instrument if spec.tasks.refusal else None
    return Step(
        name="analysis",
        action=f"{__name__}:write_analysis",
        params={**given.model_dump(), "instrument": given.instrument or own},
        outputs=("analysis.json",),
        needs=(tables,),
        label="analysis",
        code=code_digest("analysis"),
    )


def write_analysis(task: Task) -> None:
    """Analyse the run's outcomes as the step's parameters say."""
    require_unchanged(task.run.path)
    content = _analysed(task.run.path, **task.step.params)
    write_json(task.run / task.step.outputs[0], content)


def analyse_run(path: Path, **chosen: Any) -> dict[str, Any]:
    """Analyse a finished run again, otherwise than its spec says; nothing is written.

    Args:
        path: The run directory.
        chosen: Parameters of `mechprobe.analysis.document.analyse`; those that are not given are
            the spec's.

    Raises:
        RunDirectoryError: It is no run directory, its tables are not written yet, or a file is not
            as the run wrote it.
        TableError: An instrument has not read the answers, or nothing measured this quality.
    """
    read_spec(path)  # a folder that is no run is told so first
    require_recorded(path)
    return _analysed(path, **chosen)


def _analysed(path: Path, **chosen: Any) -> dict[str, Any]:
    from mechprobe.analysis.document import analyse
    from mechprobe.experiments.frames import read_frames

    spec = read_spec(path)
    try:
        planned = Analysis.model_validate(spec.get("analysis") or {})
    except ValidationError as error:
        wrong = field_name(("analysis", *error.errors()[0]["loc"]))
        said = f"{path / 'spec.yaml'}: {wrong} is damaged; put the spec of the run back"
        raise RunDirectoryError(said) from error
    given = {**planned.model_dump(), **chosen}
    given["instrument"] = given["instrument"] or _planned_instrument(spec)
    frames = read_frames(path, given["instrument"])
    there = [str(name) for name in frames.outcomes["measure"].unique()]
    # what the spec names may be missing for reasons that the document gives
    if given["quality"] not in (None, planned.quality, *there):
        raise TableError(f"{given['quality']} was not measured here; there are: {', '.join(there)}")
    document = analyse(
        frames.outcomes,
        frames.matrix,
        frames.templates,
        frames.gaps,
        absent=frames.absent,
        **given,
    )
    if note := unrecorded(path):
        document["summary"].append(note)
    return document


def _planned_instrument(spec: dict[str, Any]) -> str | None:
    """`tasks.refusal.instrument` of a spec."""
    found: Any = spec
    for name in ("tasks", "refusal", "instrument"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None
