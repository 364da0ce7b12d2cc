"""`mechprobe score`: a task's scores from a file of answers, whoever gave them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mechprobe.behavior.records import Record, json_lines, read_text
from mechprobe.behavior.tasks import Scored, Task, judged, load_task
from mechprobe.behavior.tasks.sources import read_table
from mechprobe.behavior.tasks.task import Reader
from mechprobe.errors import PromptFileError, RunDirectoryError, SpecError
from mechprobe.experiments.integrity import require_intact
from mechprobe.experiments.matching import places
from mechprobe.experiments.rundir import write_jsonl
from mechprobe.experiments.yaml_lines import read_yaml


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as the instruments take it."""

    text: str
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The scores of one row of answers."""

    row: str
    scored: Scored
    unanswered: int
    """Items of the task to which the file holds no answer; they are in no score."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "row": self.row,
            "task": self.scored.task,
            "instrument": self.scored.instrument,
            "items": self.scored.digest,
            "unanswered": self.unanswered,
            "scores": [asdict(score) for score in self.scored.scores],
        }


def asked_task(
    name: str, source: str | None, items: int | None, options: Sequence[str] = ()
) -> Task:
    """The items of a task.

    Args:
        name: Of the task.
        source: As in docs/tasks.md; the task's default.
        items: At most so many clusters of them.
        options: `NAME=VALUE` of the task's loader.

    Raises:
        SpecError: The task or an option is unknown.
        PromptFileError: The source cannot be read.
    """
    task = load_task(name, source, **_parsed(options))
    return task if items is None else task.sample(items)


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise SpecError(f"--option {option}: write NAME=VALUE, such as split=test")
        found[name], _ = read_yaml(value, f"--option {name}")
    return found


def score_file(task: Task, path: Path, instrument: str | None = None) -> list[Answered]:
    """Score what a file holds, row by row.

    Args:
        task: What was asked.
        path: JSONL of `mechprobe generate`, or any table with `text` and what `matching` needs; or
            judgements, for a judge's name as instrument.
        instrument: The first of the task's that reads text by default.

    Raises:
        PromptFileError: The file cannot be read, or what an answer is to cannot be told.
        SpecError: The instrument is unknown, or reads no text.
        RunDirectoryError: The file lies in a run and is not as the run wrote it.
    """
    require_intact(path)
    records = read_table(path).records
    judges = {str(r.fields["judge"]) for r in records if "judge" in r.fields}
    if instrument in judges:
        records = tuple(r for r in records if r.fields.get("judge") == instrument)
        reader, field = judged(str(instrument)), "label"
    else:
        reader, field = text_instrument(task, instrument), "text"
    rows: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    outputs = [_output(record, field) for record in records]
    for output, place in zip(outputs, places(task, records), strict=True):
        rows[place.row][place.item, place.sample] = output
    return [_score(task, row, answers, reader, path) for row, answers in rows.items()]


def text_instrument(task: Task, instrument: str | None) -> Reader:
    """An instrument that reads text.

    Raises:
        SpecError: It is unknown, or reads something else.
    """
    of_text = [name for name, one in task.kind.readers().items() if one.needs == "text"]
    reader = task.reader(of_text[0] if instrument is None else instrument)
    if reader.needs != "text":
        raise SpecError(
            f"{task.name}: {reader.name} reads log-likelihoods, which a file of answers does not "
            f"hold; use {' or '.join(of_text)}, or `mechprobe run`"
        )
    return reader


def _output(record: Record, field: str) -> Any:
    value = record.fields.get(field)
    if not isinstance(value, str):
        raise PromptFileError(f"{record.where}: {field!r} needs a text, not {value!r}")
    return value if field == "label" else Answer(value, record.fields.get("stop"))


def _score(
    task: Task, row: str, answers: Mapping[tuple[str, int], Any], reader: Reader, path: Path
) -> Answered:
    samples: dict[str, list[int]] = defaultdict(list)
    for item, sample in sorted(answers):
        samples[item].append(sample)
    counts = {len(numbers) for numbers in samples.values()}
    if len(counts) > 1:
        raise PromptFileError(
            f"{path}: {min(counts)} to {max(counts)} answers to an item"
            f"{f' of {row}' if row else ''}; as many are needed to each"
        )
    items = tuple(item for item in task.items if item.id in samples)
    outputs = [answers[item.id, number] for item in items for number in samples[item.id]]
    scored = replace(task, items=items).score(outputs, reader, samples=counts.pop())
    return Answered(row, scored, len(task.items) - len(items))


def write_rows(path: Path, found: Sequence[Answered]) -> None:
    """One line per answer: what it was read as, and neither prompt nor answer.

    Raises:
        RunDirectoryError: The file cannot be written, or holds something that would not be written
            again.
    """
    rows = [
        {"task": one.scored.task, "row": one.row, **row.as_dict()}
        for one in found
        for row in one.scored.rows
    ]
    if path.is_file() and path.stat().st_size:
        try:
            there = [record.fields for record in json_lines(read_text(path), str(path))]
            kept = {_place(row) for row in rows} >= {_place(row) for row in there}
        except (PromptFileError, KeyError, TypeError):
            kept = False
        if not kept or any(row.keys() & {"text", "prompt"} for row in there):
            raise RunDirectoryError(
                f"{path}: holds something else than these scores; choose another file with --out"
            )
    write_jsonl(path, rows)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "row", "item", "sample", "instrument"))
