"""How many tokens went through a model, padding included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechprobe.activations.points import graph_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechprobe.models.checkpoint import Checkpoint


class Counter:
    """Tokens so far."""

    def __init__(self) -> None:
        self.tokens = 0


@contextmanager
def counting(checkpoint: Checkpoint) -> Iterator[Counter]:
    """Count what the input embedding sees while the block runs.

    Raises:
        CheckpointError: The checkpoint has no graph.
    """
    count = Counter()

    def add(_: nn.Module, __: object, output: Tensor) -> None:
        count.tokens += output.shape[:-1].numel()

    embedding = graph_of(checkpoint)[0].get_input_embeddings()
    handle = embedding.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()
