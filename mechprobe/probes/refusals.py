"""Which prompts a model refuses, by generation: the labels that two probes are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.behavior.refusal import get_instrument, is_unread
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

_BATCH = 16
"""Answers in memory at once: as many prompts as an observation holds."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """How one model answered some prompts, greedily."""

    refused: tuple[bool | None, ...]
    """In the prompts' order; None where generation ended before there was an answer to read."""
    first_ids: tuple[int | None, ...]
    """First generated token; None where it is not the answer's: an empty answer, or a thought."""
    instrument: str
    """Read whether an answer refuses."""
    prompts: str
    """Digest of the prompts' token ids."""
    thinking: int = 0
    """How many of the answers begin with a thought."""

    @property
    def openings(self) -> tuple[int, ...]:
        """First tokens of the refusing answers: the candidates of `find_refusal_tokens`."""
        pairs = zip(self.refused, self.first_ids, strict=True)
        return tuple(first for refused, first in pairs if refused and first is not None)


def read_refusals(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    *,
    instrument: str = "hard",
    max_new_tokens: int = 32,
    progress: Progress = silent,
) -> Refusals:
    """Let a model answer, and read the answers with a refusal instrument.

    `progress` is told of answers done and in all.

    Raises:
        SpecError: No instrument has this name.
        GenerationError: The engine failed.
    """
    from mechprobe.generation import open_engine

    reader = get_instrument(instrument)
    # llama.cpp, which runs a native GGUF, has a batch of its own
    options = {} if checkpoint.module is None else {"batch_size": _BATCH}
    with open_engine(checkpoint, **options) as engine:
        answers = engine.generate(prompts.ids, max_new_tokens=max_new_tokens, progress=progress)
    return Refusals(
        refused=tuple(None if is_unread(a.text) else reader(a.text) for a in answers),
        first_ids=tuple(a.ids[0] if a.ids and a.answer_start == 0 else None for a in answers),
        instrument=instrument,
        prompts=prompts.digest,
        thinking=sum(a.answer_start != 0 for a in answers),
    )
