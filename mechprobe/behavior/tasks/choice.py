"""Questions with options, MMLU and ARC among them: by letter log-likelihood and by generation.

`letters` is the default and comes from `multiple_choice.score_letters`, which refuses an engine
whose options tie on every question. `parsed` reads generated text by `parsing.parse_choice`; an
unparsable answer counts as not right, and its share is reported beside the accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.behavior.multiple_choice import Choice, as_question, with_options
from mechprobe.behavior.records import Record
from mechprobe.behavior.tasks.item import Item, Reading, Row
from mechprobe.behavior.tasks.parsing import parse_choice
from mechprobe.behavior.tasks.score import Score, mean_score
from mechprobe.behavior.tasks.sources import Table, optional, read_table, text_field
from mechprobe.behavior.tasks.task import Count, Kind, Reader, Task, text_reader
from mechprobe.errors import PromptFileError

ASK = "Answer with the letter of the right option."
_HENDRYCKS = ("question", "A", "B", "C", "D", "answer")
_STUDY_OPTIONS = ("option_a", "option_b", "option_c", "option_d")
_LETTERED = re.compile(r"^\s*[A-J]\)\s+")
_UNREAD = ("unparsable", "refused", "tie", "unread", "filtered")


def read_letters(items: Sequence[Item], choices: Sequence[Choice]) -> list[Reading]:
    """The options with the highest log-likelihood; a tie at the top is not credited."""
    return [
        Reading(
            "tie" if choice.chosen is None else _grade(item, choice.chosen),
            float(choice.chosen == item.answer),
            {"chosen": choice.chosen, "letter_mass": choice.letter_mass},
        )
        for item, choice in zip(items, choices, strict=True)
    ]


def read_text(item: Item, text: str) -> Reading:
    """The option that a generated answer names."""
    chosen = parse_choice(text, item.options)
    outcome = "unparsable" if chosen is None else _grade(item, chosen)
    return Reading(outcome, float(chosen == item.answer), {"chosen": chosen})


def _grade(item: Item, chosen: int) -> str:
    return "right" if chosen == item.answer else "wrong"


def readers() -> Mapping[str, Reader]:
    """`letters` by log-likelihood, `parsed` from generated text."""
    return {
        "letters": Reader("letters", "letters", read_letters),
        "parsed": text_reader("parsed", read_text),
    }


def unread_share(group: str, rows: Sequence[Row]) -> Score:
    """The share of answers that name no option, for whatever reason."""
    values = [float(row.reading.outcome in _UNREAD) for row in rows]
    return mean_score("unread_share", group, rows, values=values)


def summarise(rows: Sequence[Row]) -> list[Score]:
    """Accuracy, and the share of answers that name no option."""
    return [mean_score("accuracy", "all", rows), unread_share("all", rows)]


CHOICE = Kind("multiple_choice", readers, summarise, version=6)


def load_choice(source: str | Path = "organism", *, n: Count = 200, seed: int = 0) -> Task:
    """Questions with options.

    Args:
        source: MMLU (the CSV files of hendrycks/test, or rows with `question`, `choices`,
            `answer`), ARC (`question`, `choices`, `answerKey`), the YAML samples of the study,
            a user's `.jsonl`, or `organism`.
        n: Questions of the organism's world; files are taken whole.
        seed: Of the organism's world.

    Raises:
        PromptFileError: The source cannot be read or a question is malformed.
    """
    if str(source) == "organism":
        return Task("multiple_choice/organism", CHOICE, _of_organism(n, seed), "organism")
    table = read_table(source)
    columns = table.columns
    if Path(source).suffix.lower() == ".csv" and not {"question", "answer"} <= columns:
        table = read_table(source, header=_HENDRYCKS)
        name, read = "mmlu", _hendrycks
    elif _STUDY_OPTIONS[0] in columns or "choices_text" in columns:
        name, read = str(table.head.get("name") or "study"), _study
    elif "answerKey" in columns:
        name, read = "arc", _arc
    elif {"question", "choices", "answer"} <= columns:
        name, read = "mmlu", _mmlu
    elif "A" in columns and "D" in columns:
        name, read = "mmlu", _hendrycks
    else:
        name, read = "jsonl", _own
    items = tuple(
        read(table, index, record, Path(source).stem) for index, record in enumerate(table.records)
    )
    return Task(f"multiple_choice/{name}", CHOICE, items, str(source))


def lettered(
    record: Record, id: str, question: str, options: Any, answer: Any, category: str | None
) -> Item:
    """An item that asks a question with its options below it.

    Raises:
        PromptFileError: The options or the answer are malformed.
    """
    body = {"question": question, "options": options, "answer": answer, "category": category}
    found = as_question(body, id=id, where=record.where)
    prompt = f"{with_options(question, found.options)}\n{ASK}"
    return Item(id, prompt, category=found.category, options=found.options, answer=found.answer)


def _hendrycks(table: Table, index: int, record: Record, stem: str) -> Item:
    subject = re.sub(r"_(test|val|dev)$", "", stem)
    options = [text_field(record, letter) for letter in "ABCD"]
    answer = text_field(record, "answer").strip()
    question = text_field(record, "question")
    return lettered(record, f"{stem}-{index:04d}", question, options, answer, subject)


def _mmlu(table: Table, index: int, record: Record, stem: str) -> Item:
    subject = optional(record, "subject")
    question, choices = text_field(record, "question"), record.fields.get("choices")
    if choices is None:
        raise PromptFileError(f"{record.where}: the field 'choices' is missing")
    id = f"{subject or stem}-{index:05d}"
    return lettered(record, id, question, choices, record.fields.get("answer"), subject)


def _arc(table: Table, index: int, record: Record, stem: str) -> Item:
    """Rows of the official JSONL, whose question is an object, and of the hub's tables."""
    question: Any = record.fields.get("question")
    choices: Any = record.fields.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
    labels = choices.get("label") if isinstance(choices, dict) else None
    if not isinstance(labels, list) or not isinstance(question, str):
        raise PromptFileError(f"{record.where}: needs a question and choices with text and label")
    key = record.fields.get("answerKey")
    if key not in labels:
        raise PromptFileError(f"{record.where}: answerKey {key!r} is none of the labels {labels}")
    id = optional(record, "id") or f"{stem}-{index:05d}"
    return lettered(record, id, question, choices.get("text"), labels.index(key), None)


def _study(table: Table, index: int, record: Record, stem: str) -> Item:
    """A sample of the study's files, asked in the words of the file's own template."""
    lines = str(record.fields.get("choices_text") or "").split("\n")
    options: list[Any] = [_LETTERED.sub("", line).strip() for line in lines if line.strip()]
    if not options:
        options = [record.fields.get(name) for name in _STUDY_OPTIONS]
    item = lettered(
        record,
        text_field(record, "id"),
        text_field(record, "question"),
        options,
        record.fields.get("reference"),
        optional(record, "subject"),
    )
    return Item(
        item.id,
        render(table, record),
        category=item.category,
        options=item.options,
        answer=item.answer,
    )


def render(table: Table, record: Record) -> str:
    """The prompt that a YAML file's own `prompt_template` makes of one of its samples.

    Raises:
        PromptFileError: The template is missing or cannot be filled.
    """
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    template = table.head.get("prompt_template")
    if not isinstance(template, str):
        raise PromptFileError(f"{table.name}: needs a text named 'prompt_template'")
    try:
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        return environment.from_string(template).render(record.fields).strip()
    except Exception as error:  # a template is a program and may raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PromptFileError(f"{record.where}: prompt_template: {said}") from error


def _own(table: Table, index: int, record: Record, stem: str) -> Item:
    found = as_question(record.fields, id=f"q{index:05d}", where=record.where)
    return Item(
        found.id,
        found.prompt,
        category=found.category,
        options=found.options,
        answer=found.answer,
    )


def _of_organism(n: int, seed: int) -> tuple[Item, ...]:
    from mechprobe.organisms import world

    return tuple(
        Item(f"q{i:05d}", item.prompt, options=item.options, answer=item.answer_index)
        for i, item in enumerate(world.questions(n, seed))
    )
