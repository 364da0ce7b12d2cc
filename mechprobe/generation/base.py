"""The seam that every engine fits: token ids in, text and log-probabilities out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from mechprobe.errors import SpecError
from mechprobe.progress import Progress, silent

StopReason = Literal["eos", "length", "filtered"]
"""It ended by itself, ran into `max_new_tokens`, or a server's content filter cut it."""
Parity = Literal["ids", "unverified"]
ANSWERS_VERSION = 5
"""Raised when the same request is answered, or its answer written down, otherwise."""
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. Temperature first, then top-k, then top-p, on every engine."""

    temperature: float = 0.0
    """0 is greedy: the likeliest token, and every sample of a prompt is the same text."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep so many of the likeliest tokens; 0 keeps all."""
    samples: int = 1
    """Answers to each prompt."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no engine could do.

        Raises:
            SpecError: A value is out of its range.
        """
        for name, fits, needed in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("samples", self.samples >= 1, "1 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise SpecError(f"{name} {getattr(self, name)}: it must be {needed}")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer."""

    text: str
    """Decoded without special tokens. A thought stands before it as `<think>…</think>`, however the
    model marks it; `<think>…` alone was cut within it. See `models.thoughts`."""
    ids: tuple[int, ...]
    """Generated ids, the end-of-sequence token left out; empty where a server gives text alone."""
    stop: StopReason
    prompt_tokens: int
    sample: int = 0
    """Which of its prompt's answers this is."""
    seed: int | None = None
    """`Sampling.seed`; None where the answer is greedy."""
    parity: Parity = "ids"
    """`unverified`: the engine took text and rendered it itself; compare only with its like."""
    reported_tokens: int | None = None
    """Generated tokens as a server counts them, where it gives no ids."""
    answer_start: int | None = 0
    """How many of `ids` come before the answer: a thought and its markers. None where there is no
    answer yet, or where a server gives no ids to a text with a thought."""

    @property
    def new_tokens(self) -> int:
        """Generated tokens."""
        return len(self.ids) if self.reported_tokens is None else self.reported_tokens


class Engine(Protocol):
    """Runs one checkpoint. Engines are closed after use: `with engine: …`."""

    name: str
    """`transformers-native`, `transformers-dense`, `llama.cpp` or `server`."""
    notes: tuple[str, ...]
    """What did not go as asked, and what was traded."""

    @property
    def threads(self) -> int | None:
        """Of this machine's CPU; None where another device or machine computes."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Completions of token-id prompts, in the order given.

        Args:
            prompts: Token ids.
            max_new_tokens: Where an answer that does not end by itself is cut.
            sampling: None is greedy, one answer for each prompt. With k samples the result has k
                answers for each prompt, one prompt after the other. What an answer draws depends
                on the seed, its prompt and its number alone, not on the prompts beside it.
            progress: Told of answers done and in all.
        """
        ...

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Log-probabilities (nats) of the next token, shape (n_prompts, vocabulary)."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...


def stream_seed(seed: int, prompt: Sequence[int] | str, sample: int = 0) -> int:
    """A 64-bit seed for the random numbers of one answer.

    Neither temperature nor weights enter: the same prompt draws the same random numbers at every
    precision and temperature, so that their differences are paired in chance too.

    Args:
        seed: `Sampling.seed`.
        prompt: Token ids, or text where an engine takes text.
        sample: Which of the prompt's answers.
    """
    content = prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    key = json.dumps([seed, sample, content]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8])


def repeated(answers: Sequence[Completion], sampling: Sampling) -> list[Completion]:
    """Greedy answers, once for each sample that was asked for."""
    return [replace(a, sample=k) for a in answers for k in range(sampling.samples)]
