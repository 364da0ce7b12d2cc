"""Prompts of different lengths become rectangles that a model can run, and nothing leaks.

Padding is on the left, so that the last token of every prompt is the last column, and position
ids are always explicit: without them a rotary or learned position counts the padding too.

With a shared prefix of k tokens, whose keys and values come from a cache, a row is laid out as

    [ k prefix tokens (cached) | left padding | the prompt's own tokens ]

Position ids of the own tokens go on at k, whatever the padding, and the mask covers prefix and own
tokens. Attention by position is therefore that of the prompt alone. What is *not* kept is the
distance between columns: the padding lies inside the row. Sliding-window layers measure columns,
so such a batch needs all its columns within the window; `mechprobe.activations.prefix` sees to it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechprobe.models.rendering import EncodedPrompts


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Some prompts as tensors of one width, with what the model needs to tell them apart."""

    indices: tuple[int, ...]
    """Which prompt each row is: places in the `EncodedPrompts` the batch was made from."""
    input_ids: Int[Tensor, "row column"]
    attention_mask: Int[Tensor, "row prefix_and_column"]
    """1 on prefix and own tokens, 0 on padding; wider than `input_ids` by `prefix`."""
    position_ids: Int[Tensor, "row column"]
    prefix: int = 0
    """Leading tokens of every prompt that are left out, because a cache holds them."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.indices)

    @property
    def is_padding(self) -> Bool[Tensor, "row column"]:
        """True on the columns of `input_ids` that hold no token."""
        return self.attention_mask[:, self.prefix :] == 0

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a transformers model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def length_sorted(lengths: Sequence[int]) -> tuple[int, ...]:
    """Order of the prompts, longest first; equal lengths keep the order they were given in.

    Longest first, so that the most memory is needed at the very beginning of a run, and a rate
    measured early is a lower bound.
    """
    return tuple(sorted(range(len(lengths)), key=lambda i: -int(lengths[i])))


def groups(
    order: Sequence[int], size: int, keys: Sequence[Hashable] | None = None
) -> list[tuple[int, ...]]:
    """Cut `order` into runs of at most `size`.

    Args:
        order: Prompts, by number.
        size: Rows of a batch.
        keys: Of each prompt, as `rotary.batch_keys` gives them: a run holds one key alone.

    Raises:
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a batch needs at least one row, not {size}")
    alike = [tuple(order)]
    if keys is not None:
        alike = [tuple(run) for _, run in groupby(order, key=keys.__getitem__)]
    return [run[i : i + size] for run in alike for i in range(0, len(run), size)]


def pad_batch(
    prompts: EncodedPrompts,
    indices: Sequence[int],
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    prefix: int = 0,
) -> PaddedBatch:
    """The prompts at `indices`, without their first `prefix` tokens, padded on the left.

    Args:
        prompts: All prompts.
        indices: Rows of the batch.
        pad_id: Any id of the vocabulary; masked, so its choice does not matter.
        device: Where the tensors go.
        prefix: Tokens that every prompt shares and a cache holds; fewer than any prompt has.

    Raises:
        ValueError: A prompt has no token of its own after the prefix, or `indices` is empty.
    """
    rows = [prompts.ids[i][prefix:] for i in indices]
    if not rows or min(map(len, rows)) < 1:
        raise ValueError(f"each prompt needs a token of its own after a prefix of {prefix}")
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    pads = torch.tensor([width - len(row) for row in rows]).unsqueeze(1)
    column = torch.arange(width).unsqueeze(0)
    mask = torch.cat(
        [torch.ones(len(rows), prefix, dtype=torch.long), (column >= pads).long()], dim=1
    )
    return PaddedBatch(
        indices=tuple(indices),
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=((column - pads).clamp(min=0) + prefix).to(device),
        prefix=prefix,
    )


def padded_batches(
    prompts: EncodedPrompts,
    batch_size: int,
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    prefix: int = 0,
) -> Iterator[PaddedBatch]:
    """All prompts, in batches of similar length, longest first.

    The batches are a function of the arguments alone. `PaddedBatch.indices` says where each row
    belongs; the union over the batches is every prompt once.
    """
    for indices in groups(length_sorted([len(row) for row in prompts.ids]), batch_size):
        yield pad_batch(prompts, indices, pad_id, device, prefix=prefix)


def pad_token_id(tokenizer: object) -> int:
    """An id to pad with: the tokenizer's own, else its end of sequence, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0
