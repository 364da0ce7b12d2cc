"""One batch of prompts decoded greedily: the loop, without batching or loading."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mechprobe.errors import NumericsError
from mechprobe.generation.base import StopReason

if TYPE_CHECKING:
    from mechprobe.activations.batching import PaddedBatch

DROP_SHARE = 0.25
"""Finished rows are dropped from the batch once they are this share of it: dropping copies the
cache, keeping computes tokens that nobody reads."""


@dataclass(slots=True)
class Row:
    """What one prompt has been answered so far."""

    ids: list[int] = field(default_factory=list)
    stop: StopReason = "length"


def fresh_cache(config: Any, prefix: Cache | None, rows: int) -> Cache:
    """A cache that grows, empty or holding a shared prefix in each of `rows` rows.

    Args:
        config: The transformers model's config.
        prefix: From `activations.prefix.compute_prefix`, or None.
        rows: Prompts in the batch.
    """
    if prefix is None:
        return DynamicCache(config=config.get_text_config(decoder=True))
    layers: list[Any] = []
    for shared in prefix.layers:
        layer = DynamicLayer()
        layer.update(*(x.expand(rows, -1, -1, -1) for x in (shared.keys, shared.values)))
        layers.append(layer)
    cache = DynamicCache()  # without a config: its sliding layers would forget the prefix's place
    cache.layers = layers
    return cache


def prompt_logits(
    module: Any, batch: PaddedBatch, cache: Cache | None
) -> Float[Tensor, "row vocabulary"]:
    """Logits of the first generated token, in the model's dtype; fills the cache."""
    output = module(
        **batch.model_inputs(),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def check_logits(best: Tensor, step: int, cell: str) -> None:
    """Complain of NaN or infinity.

    Args:
        best: The largest logit of each row, shape (row,): NaN wins every maximum.
        step: Tokens generated before this one.
        cell: What to call the model.

    Raises:
        NumericsError: A row's is not finite.
    """
    if not bool(torch.isfinite(best).all()):
        raise NumericsError(
            f"{cell}: NaN or infinity in the logits of generated token {step + 1}; load the "
            "checkpoint in float32 or bfloat16, or look for damage in its weights"
        )


def decode_batch(
    module: Any,
    batch: PaddedBatch,
    cache: Cache,
    *,
    stop_ids: Set[int],
    max_new_tokens: int,
    cell: str = "the model",
) -> list[Row]:
    """Greedy answers to one batch, row by row.

    Every row is decoded as if it were alone: positions are its own and padding is masked. Of
    equal logits the smaller id is taken, as transformers does.

    Args:
        module: The transformers model.
        batch: Prompts, padded on the left.
        cache: From `fresh_cache`; used up.
        stop_ids: Ids that end an answer.
        max_new_tokens: At least 1.
        cell: What to call the model in an error.

    Raises:
        NumericsError: NaN or infinite logits.
    """
    rows = [Row() for _ in range(len(batch))]
    alive = list(range(len(batch)))
    """Which row each line of the tensors is; finished ones stay until they are dropped."""
    open_rows = set(alive)
    mask = batch.attention_mask
    position = batch.position_ids[:, -1:]
    logits = prompt_logits(module, batch, cache)
    for step in range(max_new_tokens):
        best, chosen = logits.max(dim=-1)
        check_logits(best, step, cell)
        chosen = logits.argmax(dim=-1)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row in open_rows:
                if token in stop_ids:
                    rows[row].stop = "eos"
                    open_rows.discard(row)
                else:
                    rows[row].ids.append(token)
        if not open_rows or step + 1 == max_new_tokens:
            break
        if len(alive) - len(open_rows) >= DROP_SHARE * len(alive):
            keep = [line for line, row in enumerate(alive) if row in open_rows]
            lines = torch.tensor(keep, device=mask.device)
            cache.batch_select_indices(lines)  # type: ignore[no-untyped-call, unused-ignore]
            mask, position, chosen = mask[lines], position[lines], chosen[lines]
            alive = [alive[line] for line in keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        position = position + 1
        output = module(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return rows
