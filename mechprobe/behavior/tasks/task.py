"""A task: items of one kind, and the instruments that read answers to them.

An instrument needs one of four things, and a task says which prompts to give an engine for it:

| needs | given | from |
|---|---|---|
| `text` | one answer per item | `Engine.generate` |
| `letters` | one `Choice` per item | `multiple_choice.score_letters` on `Task.questions()` |
| `answers` | log-probabilities of `Task.answers()` | `continuation_logprobs` |
| `labels` | one judge's label per item | a judge |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from mechprobe.behavior.multiple_choice import Question
from mechprobe.behavior.tasks.item import Item, Reading, Row
from mechprobe.behavior.tasks.score import Score, Scored
from mechprobe.errors import PromptFileError, SpecError
from mechprobe.models import thoughts

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""How many items a loader makes."""
Needs = Literal["text", "letters", "answers", "labels"]


@dataclass(frozen=True, slots=True)
class Reader:
    """An instrument of a task: a name, what it needs, and how it reads."""

    name: str
    """Stands in every row and every score; names its encoder where it has one."""
    needs: Needs
    read: Callable[[Sequence[Item], Sequence[Any]], list[Reading]]
    """From items and as many outputs, in one order, to as many readings."""
    definition: str = ""
    """What decides its readings beside the version of its kind, such as the digest of a list."""


def text_reader(name: str, read: Callable[[Item, str], Reading], definition: str = "") -> Reader:
    """A reader of one text at a time.

    Answers cut off while thinking are `unread`, and those that a server's content filter cut are
    `filtered`: they are the server's doing and in no average.
    """

    def one(item: Item, output: Any) -> Reading:
        if getattr(output, "stop", None) == "filtered":
            return Reading("filtered", None)
        text = thoughts.answer_of(output if isinstance(output, str) else str(output.text))
        return Reading("unread", None) if text is None else read(item, text)

    def each(items: Sequence[Item], outputs: Sequence[Any]) -> list[Reading]:
        return [one(item, output) for item, output in zip(items, outputs, strict=True)]

    return Reader(name, "text", each, definition + thoughts.DIGEST)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kind:
    """What tasks of one kind have in common."""

    name: str
    readers: Callable[[], Mapping[str, Reader]]
    """By name; the first is the default."""
    summarise: Callable[[Sequence[Row]], list[Score]]
    version: int = 1
    """Raised when its readers or its scores come out otherwise for the same answers."""


@dataclass(frozen=True)
class Task:
    """Items to be asked, and how answers to them are scored."""

    name: str
    """Kind and format, such as `refusal/advbench`."""
    kind: Kind
    items: tuple[Item, ...]
    source: str
    """What was read: a path, `builtin`, `organism`, or a data set on the hub at its revision."""

    def __post_init__(self) -> None:
        if not self.items:
            raise PromptFileError(f"{self.source}: no items for {self.name}; one is needed")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise PromptFileError(f"{self.source}: id {item.id!r} is given twice")
            seen.add(item.id)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every field of every item, hex."""
        rows = [asdict(item) for item in self.items]
        return _hash(json.dumps(rows, sort_keys=True))

    @property
    def prompts(self) -> list[str]:
        """The user messages, in order."""
        return [item.prompt for item in self.items]

    def questions(self) -> list[Question]:
        """The items as questions for `score_letters`.

        Raises:
            SpecError: They have no options.
        """
        found = []
        for item in self.items:
            if item.answer is None:
                raise SpecError(f"{self.name}: item {item.id} has no options to choose from")
            found.append(Question(item.id, item.prompt, item.options, item.answer, item.category))
        return found

    def answers(self) -> list[tuple[str, ...]]:
        """Per item the texts whose likelihood is asked for: right answers, then wrong ones.

        Raises:
            SpecError: The items have no such answers.
        """
        for item in self.items:
            if not item.references or not item.wrong:
                raise SpecError(f"{self.name}: item {item.id} lacks right or wrong answers")
        return [(*item.references, *item.wrong) for item in self.items]

    def sample(self, n: int, *, seed: int = 0) -> Task:
        """At most `n` clusters of items, order kept; a larger `n` only adds to a smaller one."""
        clusters = {item.cluster for item in self.items}
        kept = set(sorted(clusters, key=lambda name: _hash(f"{seed}:{name}"))[:n])
        return replace(self, items=tuple(item for item in self.items if item.cluster in kept))

    def reader(self, instrument: str | Reader | None = None) -> Reader:
        """An instrument of this task; the default one where none is named.

        Raises:
            SpecError: There is none of this name; the message lists those there are.
        """
        if isinstance(instrument, Reader):
            return instrument
        there = self.kind.readers()
        name = next(iter(there)) if instrument is None else instrument
        if name not in there:
            raise SpecError(
                f"{self.name}: unknown instrument {name!r}; there are {', '.join(there)}"
            )
        return there[name]

    def scoring(self, instrument: str | Reader | None = None) -> str:
        """SHA-256 over what decides the scores of given answers, hex.

        Raises:
            SpecError: There is no such instrument.
        """
        reader = self.reader(instrument)
        return _hash(json.dumps([self.digest, self.kind.version, reader.name, reader.definition]))

    def score(
        self,
        outputs: Sequence[Any],
        instrument: str | Reader | None = None,
        *,
        samples: int = 1,
        prompts: str | None = None,
    ) -> Scored:
        """Read the answers.

        Args:
            outputs: What the instrument needs, `samples` per item, those of one item together.
            instrument: By name, or the instrument itself; the task's default.
            samples: Answers per item.
            prompts: Digest of the token ids that were answered.

        Raises:
            SpecError: As many outputs are needed as items times samples.
        """
        reader = self.reader(instrument)
        if samples < 1 or len(outputs) != len(self.items) * samples:
            raise SpecError(
                f"{self.name}: {len(self.items)} items with {samples} samples each need "
                f"{len(self.items) * samples} outputs, not {len(outputs)}"
            )
        items = [item for item in self.items for _ in range(samples)]
        readings = reader.read(items, outputs)
        rows = tuple(
            Row(item, i % samples, reader.name, reading)
            for i, (item, reading) in enumerate(zip(items, readings, strict=True))
        )
        scores = tuple(self.kind.summarise(rows))
        return Scored(self.name, self.digest, reader.name, rows, scores, prompts)
