"""Answers to many prompts, each kept as soon as it is there: `mechprobe generate`.

A file of answers has one JSON object a line, in the form that `mechprobe judge` reads. It belongs
to one request (weights, ids, sampling): the same request goes on where a killed one stopped, and
another one is refused. Engines in this process answer whole batches, so that a resumed run batches
as an uninterrupted one; a server's answers are kept one by one, for each may have cost money.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.locks import locked
from mechprobe.experiments.rundir import explained, write_jsonl
from mechprobe.generation.api import ApiError
from mechprobe.generation.base import ANSWERS_VERSION, Completion, Engine, Sampling
from mechprobe.generation.server import ServerEngine
from mechprobe.progress import Progress, part_of_all
from mechprobe.textfiles import parse_json

if TYPE_CHECKING:
    from mechprobe.models.rendering import EncodedPrompts

BATCH = 64
"""Answers between two syncs to the disk: what a kill can lose."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """What is to be answered, and by which cell."""

    records: Sequence[Mapping[str, Any]]
    """`id` (unique), `prompt`, and `label` and `cluster` where they are known."""
    given: EncodedPrompts | tuple[str, ...]
    """The same, as the engine takes them."""
    digest: str
    """Of the token ids, or of the texts."""
    row: str
    """The cell's name."""
    weights: str
    """Digest of the checkpoint, or the server's address."""
    max_new_tokens: int
    sampling: Sampling | None
    fast: bool = False
    """Whether samples share slots in the order they come, so that texts may differ by it."""

    @property
    def copies(self) -> int:
        """Answers to each prompt."""
        return 1 if self.sampling is None else self.sampling.samples

    def key(self, engine: Engine) -> str:
        """Equal keys mean that the answers would be the same."""
        said = asdict(self.sampling) if self.sampling else None
        names = [record["id"] for record in self.records]
        request = [self.weights, self.digest, names, self.max_new_tokens, said, engine.name]
        request += ["fast"] if self.fast else []
        request += [ANSWERS_VERSION]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]


@dataclass
class Answers:
    """What came of it."""

    rows: list[Row]
    """In the order of prompts and samples."""
    fresh: int = 0
    """How many were not there already."""
    missing: int = 0
    problem: str = ""
    """Why the first of the missing is missing."""


def answer_all(
    engine: Engine, questions: Questions, out: Path | None, progress: Progress
) -> Answers:
    """Answer every prompt, keeping what `out` holds already.

    Args:
        engine: Closed by the caller.
        questions: What to ask.
        out: File of answers; None keeps them in memory alone.
        progress: Told of answers done and in all.

    Raises:
        RunDirectoryError: The file belongs to another request, is in use, or cannot be written.
        MechprobeError: The engine failed; what was finished is in the file.
    """
    if out is None:
        return _answer(engine, questions, _Kept(None, ""), progress)
    with explained(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(out.absolute().parent, out.name):
        kept = _Kept(out, questions.key(engine))
        kept.read()
        return _answer(engine, questions, kept, progress)


def _answer(engine: Engine, questions: Questions, kept: _Kept, progress: Progress) -> Answers:
    found = Answers([])
    places = {
        (record["id"], sample): number * questions.copies + sample
        for number, record in enumerate(questions.records)
        for sample in range(questions.copies)
    }
    rows = kept.by_place(places)
    server = engine if isinstance(engine, ServerEngine) else None
    size = 1 if server else max(1, BATCH // questions.copies) * questions.copies
    whole = {n for n in rows if all(m in rows for m in _batch_of(n, size, len(places)))}
    if len(whole) < len(kept.rows) or kept.torn:
        kept.rewrite([rows[number] for number in sorted(whole)])
    rows = {number: rows[number] for number in sorted(whole)}
    todo = [number for number in range(len(places)) if number not in rows]
    progress(len(rows), len(places))
    steps = (
        _from_server(server, questions, todo)
        if server
        else _from_batches(
            engine,
            questions,
            todo,
            size,
            lambda wanted: part_of_all(progress, len(rows), wanted, len(places)),
        )
    )
    for done in steps:
        written = []
        for number, answer in done:
            if not isinstance(answer, Completion):
                found.missing += 1
                found.problem = found.problem or str(answer)
                continue
            rows[number] = _row(questions, number, answer, engine, kept.key)
            written.append(rows[number])
        kept.append(written)
        found.fresh += len(written)
        progress(len(rows), len(places))
    found.rows = [rows[number] for number in sorted(rows)]
    if server and not found.missing:
        kept.rewrite(found.rows)  # they came as they were finished
    return found


def _batch_of(number: int, size: int, total: int) -> range:
    first = number // size * size
    return range(first, min(first + size, total))


def _from_batches(
    engine: Engine,
    questions: Questions,
    todo: Sequence[int],
    size: int,
    progress_of: Callable[[int], Progress],
) -> Iterator[list[tuple[int, Any]]]:
    prompts: Any = questions.given
    for first in sorted({number // size * size for number in todo}):
        at = first // questions.copies
        part = prompts.ids[at : at + size // questions.copies]
        answers = engine.generate(
            part,
            max_new_tokens=questions.max_new_tokens,
            sampling=questions.sampling,
            progress=progress_of(len(part) * questions.copies),
        )
        yield list(enumerate(answers, first))


def _from_server(
    engine: ServerEngine, questions: Questions, todo: Sequence[int]
) -> Iterator[list[tuple[int, Any]]]:
    for number, answer in engine.as_they_finish(
        questions.given,
        max_new_tokens=questions.max_new_tokens,
        sampling=questions.sampling,
        numbers=todo,
    ):
        yield [(number, answer)]
        if isinstance(answer, ApiError) and answer.for_all:
            raise answer


def _row(questions: Questions, number: int, answer: Completion, engine: Engine, key: str) -> Row:
    record = questions.records[number // questions.copies]
    return {
        **record,
        "row": questions.row,
        "engine": engine.name,
        "sample": answer.sample,
        "seed": answer.seed,
        "text": answer.text,
        "ids": list(answer.ids),
        "answer_start": answer.answer_start,
        "stop": answer.stop,
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
        "parity": answer.parity,
        "fast": questions.fast,
        "threads": engine.threads,
        "prompts": questions.digest,
        "request": key,
    }


_TYPES = {"id": str, "sample": int, "text": str, "ids": list, "stop": str, "new_tokens": int}
"""Of what is read of a kept answer."""


class _Kept:
    """The file of answers: read once, appended to, and put in order at the end."""

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.rows: list[Row] = []
        self.torn = False
        """Whether a kill left half a line at the end."""

    def read(self) -> None:
        """Take what is there.

        Raises:
            RunDirectoryError: It is no file of answers, or one of another request.
        """
        if self.path is None or not self.path.exists():
            return
        with explained(self.path):
            *lines, last = self.path.read_bytes().split(b"\n")
        self.torn = bool(last)
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line.decode())
                same = row["request"] == self.key
                typed = all(type(row[name]) is kind for name, kind in _TYPES.items())
            except (ValueError, KeyError, TypeError) as error:
                raise self._no_answer(number) from error
            if not typed:
                raise self._no_answer(number)
            if not same:
                raise RunDirectoryError(
                    f"{self.path}: holds the answers of another request (other weights, prompts, "
                    "sampling, or --fast); choose another file with --out"
                )
            self.rows.append(row)

    def _no_answer(self, line: int) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.path}, line {line}: not an answer; choose another file with --out"
        )

    def by_place(self, places: Mapping[tuple[str, int], int]) -> dict[int, Row]:
        """The rows by their place among all answers, from the places of ids and samples.

        Raises:
            RunDirectoryError: A row is an answer to nothing that is asked.
        """
        found = {}
        for line, row in enumerate(self.rows, 1):
            place = places.get((row["id"], row["sample"]))
            if place is None:
                raise self._no_answer(line)
            found[place] = row
        return found

    def append(self, rows: Sequence[Row]) -> None:
        """Add whole lines and sync them to the disk."""
        if self.path is None or not rows:
            return
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Replace the file in one step."""
        if self.path is not None:
            write_jsonl(self.path, rows)
