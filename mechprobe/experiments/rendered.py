"""Prompts of a run: rendered once per model, read back by every cell as the same token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mechprobe.errors import PromptFileError, SpecError, TemplateError
from mechprobe.experiments.questions import question_rows
from mechprobe.experiments.rundir import RunDirectory, read_jsonl, write_jsonl
from mechprobe.experiments.sources import file_digest
from mechprobe.experiments.spec import SuiteTask
from mechprobe.experiments.steps import Task
from mechprobe.experiments.suite import suite_rows
from mechprobe.models.rendering import EncodedPrompts, Template, encode

if TYPE_CHECKING:
    from mechprobe.behavior import PromptSet
    from mechprobe.behavior.prompt_set import Split

LABELS = ("harmful", "harmless")
SPLITS: dict[str, Split] = {"fit": "train", "select": "validation", "evaluate": "test"}
"""What each set is drawn from: whatever is fitted or selected is never what is reported."""
_REPORTED = ("refusal", "evaluate", "gap")
"""Sets of the reported split; the larger hold the smaller, so that answers can be shared."""


def prompt_set(source: str, split: Split, n: int, seed: int) -> PromptSet:
    """At most `n` prompts of each label from one split.

    Raises:
        PromptFileError: There are none of a label, or the file is malformed.
    """
    from mechprobe.behavior import PromptRecord, PromptSet, load_prompts

    if source == "organism":
        from mechprobe.organisms import world

        try:
            drawn = world.requests(split, n, seed)
        except ValueError as error:
            raise SpecError(str(error)) from error
        records = tuple(PromptRecord(**asdict(request)) for request in drawn)
        return PromptSet(f"organism/{split}", records)
    whole = load_prompts(source)
    for label in LABELS:
        whole.select(cast(Any, label), split)  # says which label and split is missing
    return whole.select(split=split).sample(n, seed=seed)


def draw_rows(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompts of a run before they are rendered, set by set; needs no tokenizer.

    Raises:
        PromptFileError: A file is missing or malformed, or lacks a label or a split.
        SpecError: More is asked for than there is.
    """
    given: Mapping[str, Any] = params["prompts"]
    source, seed = given["source"], int(given["seed"])
    counts = {**params["counts"], "gap": -(-params["counts"]["gap"] // 2)}
    rows: list[dict[str, Any]] = []
    for name in ("fit", "select"):
        if counts[name]:
            drawn = prompt_set(source, SPLITS[name], counts[name], seed)
            rows += [{"set": name, **asdict(record)} for record in drawn]
    for name in _REPORTED:
        if counts[name]:
            held_out = prompt_set(source, SPLITS["evaluate"], counts[name], seed).records
            for label in LABELS:
                rows += [{"set": name, **asdict(r)} for r in held_out if r.label == label]
    if params["questions"]:
        asked = question_rows(params["questions_source"] or source, params["questions"], seed)
        rows += [{"set": "question", **row} for row in asked]
    for given in params["more"]:
        rows += suite_rows(SuiteTask.model_validate(given))
    return rows


def rows_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over every field of every row, hex."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def template_digest(path: str | None) -> str | None:
    """SHA-256 of a file with a chat template, hex.

    Raises:
        TemplateError: It cannot be read.
    """
    if path is None or "{" in path:  # the template itself is a parameter as it is
        return None
    if path.isidentifier() and not Path(path).exists():  # one of the tokenizer's own, by name
        return None
    try:
        return file_digest(Path(path))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise TemplateError(f"{path}: cannot be read ({reason})") from error


def write_prompts(task: Task) -> None:
    """The step `prompts/<model>`: every prompt of the run, rendered and tokenized."""
    params = task.step.params
    render_rows(task, draw_rows(params), params["prompts"]["source"], params["prompts"]["template"])


def render_rows(task: Task, rows: list[dict[str, Any]], source: str, template: Template) -> None:
    """Render prompts with the tokenizer of the step's model and write them to its output.

    Args:
        task: Its parameters name the tokenizer and the digest that the rows must have.
        rows: The prompts, each with a `text`.
        source: Where they come from, for people.
        template: How they are rendered.

    Raises:
        PromptFileError: They are no longer those that the run was planned with.
    """
    from mechprobe.experiments.loading import load_tokenizer
    from mechprobe.experiments.made import require_unchanged

    params = task.step.params
    require_unchanged(params["tokenizer"], params["revision"], params["digest"])
    tokenizer = load_tokenizer(params["tokenizer"], params["revision"], params["chat_template"])
    if rows_digest(rows) != params["rows"]:
        raise PromptFileError(
            f"{source}: the prompts changed while the run was going; run the same command again"
        )
    encoded = encode(tokenizer, [row["text"] for row in rows], template=template)
    for i, row in enumerate(rows):
        row |= {
            "ids": list(encoded.ids[i]),
            "pieces": list(encoded.pieces[i]),
            "post_instruction": encoded.post_instruction,
            "template": encoded.template,
            "notes": list(encoded.notes),
            "detour": encoded.detour,
        }
    write_jsonl(task.run / task.step.outputs[0], rows)


@lru_cache(maxsize=2)
def _rows(path: Path, version: tuple[int, int]) -> list[dict[str, Any]]:
    return read_jsonl(path)


def all_rows(run: RunDirectory, model: str) -> list[dict[str, Any]]:
    """Every row of a model's prompts, in order."""
    path = run.prompts(model)
    seen = path.stat()
    return _rows(path, (seen.st_size, seen.st_mtime_ns))


def prompt_notes(run: RunDirectory, model: str) -> tuple[str, ...]:
    """What was chosen for a model's prompts and what their template does; see `rendering`."""
    if not run.prompts(model).is_file():
        return ()
    return tuple(note for row in all_rows(run, model)[:1] for note in row["notes"])


def prompt_rows(
    run: RunDirectory, model: str, name: str, label: str | None = None
) -> list[dict[str, Any]]:
    """Rows of one set, and one label where given, in order."""
    rows = all_rows(run, model)
    return [r for r in rows if r["set"] == name and label in (None, r.get("label"))]


def encoded_rows(rows: Sequence[Mapping[str, Any]]) -> EncodedPrompts:
    """The prompts as they were rendered.

    Raises:
        PromptFileError: There are none.
    """
    if not rows:
        raise PromptFileError("the run has no prompts for this; delete its prompts folder")
    first = rows[0]
    return EncodedPrompts(
        ids=tuple(tuple(row["ids"]) for row in rows),
        texts=tuple(row["text"] for row in rows),
        pieces=tuple(tuple(row["pieces"]) for row in rows),
        post_instruction=int(first["post_instruction"]),
        template=cast(Template, first["template"]),
        notes=tuple(first["notes"]),
        detour=str(first.get("detour", "")),
    )
