"""Further tasks of a run, scored: a row per item, and columns of the matrix.

What is asked stands in the run's prompts file as token ids, like every other prompt. Right answers
are read from the source again when a cell is scored; the items must then be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import PromptFileError
from mechprobe.experiments.loading import held
from mechprobe.experiments.rendered import encoded_rows, prompt_rows
from mechprobe.experiments.rundir import read_jsonl, write_json, write_jsonl
from mechprobe.experiments.spec import SuiteTask
from mechprobe.experiments.suite import asked, reader, set_name, wants
from mechprobe.experiments.summary import number
from mechprobe.models.rendering import require_parity

if TYPE_CHECKING:
    from mechprobe.behavior.tasks import Scored
    from mechprobe.behavior.tasks import Task as Asked
    from mechprobe.experiments.steps import Task

SCORE = ("value", "low", "high", "n")
"""What columns say of a score."""


def score_task(step: Task) -> None:
    """Read the answers of one task: a row per item, and the scores with their intervals."""
    given = SuiteTask.model_validate(step.step.params["task"])
    task = asked(given)
    rows, summary = (step.run / path for path in step.step.outputs)
    scored, kernel = _scored(step, given, task)
    write_jsonl(rows, [{**row.as_dict(), "prompts": scored.prompts} for row in scored.rows])
    write_json(
        summary,
        {
            "task": scored.task,
            "source": task.source,
            "instrument": scored.instrument,
            "kernel": kernel,
            "items": scored.digest,
            "prompts": scored.prompts,
            "scores": [asdict(score) for score in scored.scores],
        },
    )


def _scored(step: Task, given: SuiteTask, task: Asked) -> tuple[Scored, str]:
    """What the engine said, as the instrument reads it, and the kernel that said it."""
    from mechprobe.behavior.multiple_choice import score_letters
    from mechprobe.generation.likelihood import continuation_ids, continuation_logprobs

    model = str(step.step.params["cell"]["model"])
    rows = prompt_rows(step.run, model, set_name(given))
    if task.digest != step.step.params["items"]:
        raise PromptFileError(
            f"{task.source}: the items changed while the run was going; run the same command again"
        )
    prompts = encoded_rows(rows)
    wanted = wants(given)
    outputs: list[Any]
    kernel = "dense" if wanted == "answers" else "native"
    if wanted == "text":
        folder = Path(step.step.outputs[0]).parents[1]
        label = given.answers or given.label
        answers = read_jsonl(step.run / str(folder / "generations" / f"{label}.jsonl"))
        outputs = [row["text"] for row in answers]
    elif wanted == "letters":
        loaded = held(step, "native")
        tokenizer = loaded.checkpoint.tokenizer
        found = score_letters(loaded.engine, prompts, task.questions(), tokenizer)
        outputs = list(found.choices)
    else:
        checkpoint = held(step, "dense").checkpoint
        ids = continuation_ids(checkpoint.tokenizer, prompts, task.answers())
        outputs = list(continuation_logprobs(checkpoint, prompts.ids, ids))
    return task.score(outputs, reader(given), prompts=prompts.digest), kernel


def suite_columns(
    mine: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, Any]:
    """The scores of a cell for one row of the matrix, with what they moved by from the baseline.

    Raises:
        ParityError: Cell and baseline answered other token ids.
    """
    row: dict[str, Any] = {}
    for label, found in mine.items():
        base = other.get(label)
        if base:
            require_parity(base["prompts"], found["prompts"], f"{where}: {label}")
        before = {column(label, score): score for score in base["scores"]} if base else {}
        row[f"{label}_instrument"] = found["instrument"]
        for score in found["scores"]:
            name = column(label, score)
            then = before.get(name, {}).get("value")
            row |= {f"{name}_{part}": _plain(score[part]) for part in SCORE}
            moved = None if then is None or score["value"] is None else score["value"] - then
            row[f"{name}_delta"] = number(moved)
        row[f"{label}_prompts"] = found["prompts"]
    return row


def column(label: str, score: Mapping[str, Any]) -> str:
    """The name of a score's columns, without their endings."""
    group = "" if score["group"] == "all" else f"_{score['group']}"
    return f"{label}_{score['measure']}{group}".replace(" ", "_")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else number(value)
