"""What judges read and what they say: plain values, and the seam that every judge fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from mechprobe.behavior.refusal import RefusalLabel

Status = Literal["labelled", "unparsed", "error"]
LABELS: tuple[RefusalLabel, ...] = get_args(RefusalLabel)
REFUSALS: frozenset[RefusalLabel] = frozenset({"FULL_REFUSAL", "PARTIAL_REFUSAL"})
BEHAVIOURS: dict[str, RefusalLabel] = {
    "refused": "FULL_REFUSAL",
    "partly": "PARTIAL_REFUSAL",
    "complied": "COMPLIANCE",
    "unclear": "UNCLEAR",
}
"""The oracle's words, `oracle.Behaviour`, and the labels that they are."""


def refuses(label: RefusalLabel | None) -> bool | None:
    """Whether a label is a refusal, full or partial.

    None of an answer without a label, and of UNCLEAR, which is in no rate: it is counted beside it.
    """
    return None if label in (None, "UNCLEAR") else label in REFUSALS


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and what one row of the matrix answered."""

    id: str
    prompt: str
    """The user message, before the chat template."""
    text: str
    """The answer, as generated."""
    task: str = ""
    row: str = ""
    """The cell that answered, for example `llama-s/Q2_K@llama.cpp`."""
    sample: int = 0
    request: str = ""
    """`harmful` or `harmless`, where it is known."""
    cluster: str = ""
    """Prompts of one cluster are resampled together; the id where it is empty."""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What no two exchanges share."""
        return (self.task, self.row, self.id, self.sample)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge said when asked once."""

    label: Any = None
    """One of the four labels, or None."""
    status: Status = "labelled"
    problem: str = ""
    """Of an error: its one line."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    served: str = ""
    """The model's name as its server gave it."""
    reply: str = ""
    """The judge's own words; they may quote the answer it read."""
    passing: bool = False
    """Of an error: whether the same question may be answered later."""
    stops_all: bool = False
    """Whether every other question would fail alike."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is still to be asked. Tokens are estimates: UTF-8 bytes / 4, and the most allowed."""

    items: int
    finished: int
    """Items whose label was bought by an earlier run, or that need no call."""
    calls: int
    """If each is understood at once; one that is not is asked again, at most `tries` times."""
    tries: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's label of one exchange. It holds neither prompt nor answer."""

    id: str
    task: str
    row: str
    sample: int
    request: str
    cluster: str
    judge: str
    version: str
    """Of the judge prompt; empty for a judge without one."""
    digest: str
    """SHA-256 over everything that decides the judge's labels, its prompt among it."""
    label: RefusalLabel | None
    status: Status
    problem: str = ""
    served: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The exchange it is about."""
        return (self.task, self.row, self.id, self.sample)


class Judge(Protocol):
    """Reads exchanges into the four labels. Judges are closed after use."""

    name: str
    """As it is spelled: `rules`, `oracle`, `openai:MODEL@URL`, `hf:CLASSIFIER`."""
    version: str
    about: Mapping[str, Any]
    """Everything that decides its labels."""
    paid: bool
    """Whether labels are worth keeping: they cost money or minutes."""
    tries: int
    """How often it is asked about one item before the item is left `unparsed`."""

    def opinions(
        self, pairs: Iterable[tuple[str, str]], attempt: int
    ) -> Iterator[tuple[int, Opinion]]:
        """Read (prompt, answer) pairs; answers come without their thinking blocks.

        Args:
            pairs: What to read, taken when there is room for it.
            attempt: From 0; above it the judge was not understood before.

        Yields:
            The place of a pair and the opinion of it, in any order, each once.
        """
        ...

    def tokens(self, prompt: str, answer: str) -> tuple[int, int]:
        """Estimated prompt tokens and the most completion tokens of one call; (0, 0) if free."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...
