"""The seam that every engine fits: token ids in, text and log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

StopReason = Literal["eos", "length"]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer."""

    text: str
    """Decoded without special tokens."""
    ids: tuple[int, ...]
    """Generated ids, the end-of-sequence token left out."""
    stop: StopReason
    prompt_tokens: int


class Engine(Protocol):
    """Runs one checkpoint. Engines are closed after use: `with engine: …`."""

    name: str
    """`transformers-native`, `transformers-dense` or `llama.cpp`."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64
    ) -> list[Completion]:
        """Greedy completions of token-id prompts, in the order given."""
        ...

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Log-probabilities (nats) of the next token, shape (n_prompts, vocabulary)."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: object) -> None: ...
