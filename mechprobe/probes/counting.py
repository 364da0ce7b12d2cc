"""How many tokens went through a model, padding left out.

A token that went through a part of the blocks counts as that part of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mechprobe.activations.points import graph_of
from mechprobe.activations.restart import share_run

if TYPE_CHECKING:
    from torch import nn

    from mechprobe.models.checkpoint import Checkpoint


class Counter:
    """Tokens so far."""

    def __init__(self) -> None:
        self.tokens = 0.0


@contextmanager
def counting(checkpoint: Checkpoint) -> Iterator[Counter]:
    """Count the tokens of every forward pass while the block runs.

    Raises:
        CheckpointError: The checkpoint has no graph.
    """
    count = Counter()

    def add(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        mask = given.get("attention_mask")
        tokens = ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
        count.tokens += tokens * share_run(checkpoint)

    handle = graph_of(checkpoint)[0].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
