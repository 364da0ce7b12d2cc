"""What training does to the residual stream, so that a decision can be found and steered.

A small model decides in its last blocks and knows no stream but its own: adding a direction to it
gives broken text, in place of another decision. Two perturbations change that. *Early exits* skip
the last blocks now and then, so that decisions are made before them. *Stream noise* moves the
stream at answer tokens along the difference of two other states, so that an answer that has begun
goes on whatever is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXIT_SHARE = 0.5
"""Of the passes, how many skip blocks."""
_NOISE_SHARE = 0.6
"""Of the rows of a pass, how many are moved."""


class Perturbations:
    """Hooks on the blocks of a model in training; still unless a pass is announced."""

    def __init__(self, model: PreTrainedModel, *, exits: int, noise: float, seed: int) -> None:
        """Attach to every block.

        Args:
            model: A decoder with `layers`.
            exits: At most so many of the last blocks are skipped; 0 for none.
            noise: At most so large, relative to the length of the state that is moved.
            seed: Of its own draws.
        """
        self._blocks = list(model.base_model.layers)
        inner = len(self._blocks) - 1  # the first block is never skipped, nor its input moved
        self._exits, self._noise = min(exits, inner), noise if inner else 0.0
        self._draws = torch.Generator().manual_seed(seed)
        self._weights: torch.Tensor | None = None
        self._first_weight = 0.0
        self._block = self._skipped = 0
        self._hooks: list[Any] = []
        for number, block in enumerate(self._blocks):
            self._hooks += [
                block.register_forward_pre_hook(self._before(number), with_kwargs=True),
                block.register_forward_hook(self._after(number), with_kwargs=True),
            ]

    @contextmanager
    def during(self, weights: torch.Tensor, first_weight: float) -> Iterator[None]:
        """Perturb the passes inside the block.

        Args:
            weights: Of each target in the loss, shape (batch, length): they say where answers are.
            first_weight: The weight of an answer's first token.
        """
        self._weights, self._first_weight = weights, first_weight
        self._block = self._draw(1, len(self._blocks)) if self._noise else 0
        exits = self._exits > 0 and self._uniform() < _EXIT_SHARE
        self._skipped = self._draw(1, self._exits + 1) if exits else 0
        try:
            yield
        finally:
            self._weights, self._skipped = None, 0

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self._draws))

    def _uniform(self) -> float:
        return float(torch.rand(1, generator=self._draws))

    def _before(self, number: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
            stream = args[0] if args else given["hidden_states"]
            weights = self._weights
            if weights is None or not self._noise or number != self._block:
                return None
            if stream.shape[:2] != weights.shape:  # the shared prefix has no answer
                return None
            moved = self._moved(stream, weights)
            return (
                ((moved, *args[1:]), given) if args else (args, {**given, "hidden_states": moved})
            )

        return hook

    def _after(self, number: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
            if number < len(self._blocks) - self._skipped:
                return None
            stream = args[0] if args else given["hidden_states"]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def _moved(self, stream: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The stream with noise where an answer has begun."""
        inside = weights == 1.0
        pool = stream[weights == self._first_weight if self._uniform() < 0.5 else weights >= 1.0]
        pool = pool.detach()
        n = int(inside.sum())
        one, other = (pool[torch.randint(len(pool), (n,), generator=self._draws)] for _ in range(2))
        step = torch.nn.functional.normalize(one - other, dim=-1)
        rows = len(stream)
        size = torch.rand(rows, 1, generator=self._draws) * self._noise
        size = size * (torch.rand(rows, 1, generator=self._draws) < _NOISE_SHARE)
        size = size.expand(-1, stream.shape[1])[inside].unsqueeze(-1)
        moved = stream.clone()
        moved[inside] = stream[inside] + size * step * stream[inside].detach().norm(
            dim=-1, keepdim=True
        )
        return moved
