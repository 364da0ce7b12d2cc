"""The tokens that all prompts begin with are run once, and every batch attends to them.

A chat template and a system prompt are half of a short prompt. Their keys and values do not depend
on what follows, so one row of them serves all prompts of a capture. They do depend on the weights
and on every active intervention: a prefix belongs to one pass and is never kept beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mechprobe.activations.interventions import beginning_read
from mechprobe.activations.rotary import forward_pass, frequencies_at
from mechprobe.models.rendering import EncodedPrompts

MIN_TOKENS = 4
"""A shorter prefix saves less than its mask costs."""
_ATTENTIONS = frozenset({"sdpa", "eager"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """One layer's prefix, of all rows or of each: joined to a batch's own keys, never growing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and batch, shape (row, head, prefix + column, head width).

        The result is not stored: it lives as long as the layer's attention needs it, and the next
        batch finds the prefix alone again.
        """
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many leading tokens to share, and why not more."""

    tokens: int
    note: str = ""
    """Why sharing was given up although there is a common prefix; empty otherwise."""


def plan_sharing(config: Any, prompts: EncodedPrompts, depth: int | None) -> Sharing:
    """Decide how much of the prompts' common prefix can be shared without changing a result.

    Args:
        config: The transformers model's config.
        prompts: All prompts of the pass.
        depth: Positions from the end that must be seen by hooks: 1 for the last token alone,
            None for all of them, which leaves nothing to share.

    Returns:
        Zero tokens where positions reach into the prefix, where it is too short to pay, or where
        the architecture does not allow it: padding lies between prefix and own tokens, so a
        sliding window must be at least as long as the longest prompt, and rotary frequencies must
        not depend on the length of the batch.
    """
    if depth is None:
        return Sharing(0)
    lengths = [len(row) for row in prompts.ids]
    tokens = min(prompts.common_prefix(), min(lengths) - depth)
    if tokens < MIN_TOKENS:
        return Sharing(0)
    note = _obstacle(config.get_text_config(decoder=True), max(lengths))
    return Sharing(0, f"prefix of {tokens} tokens not shared: {note}") if note else Sharing(tokens)


def why_not_cached(config: Any) -> str:
    """Say why keys and values cannot be kept for the tokens that follow; empty where they can."""
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _ATTENTIONS:
        return f"attention {attention!r} is not sdpa or eager"
    types = set(getattr(config, "layer_types", None) or ())
    if types - _LAYER_TYPES:
        return f"layers of type {', '.join(sorted(types - _LAYER_TYPES))}"
    return ""


def _obstacle(config: Any, longest: int) -> str:
    if why := why_not_cached(config):
        return why
    types = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in types if types else window is not None
    if slides and window is not None and longest > window:
        return f"the longest prompt has {longest} tokens and the sliding window {window}"
    if frequencies_at(config, longest) != frequencies_at(config, 1):
        return f"rotary frequencies change within {longest} tokens"
    return ""


def compute_prefix(model: Any, ids: tuple[int, ...]) -> Cache:
    """Run the prefix once, under whatever interventions are active now.

    A `Patch` has no place in it, see `beginning_read`. Blocks that are skipped leave nothing.

    Args:
        model: The transformers model.
        ids: The shared tokens, at least one.

    Returns:
        A cache to pass as `past_key_values` with any number of batches; it never changes.
    """
    recorded = DynamicCache()  # without a config, sliding layers keep every token
    row = torch.tensor([ids], device=model.device)
    with torch.no_grad(), beginning_read(model):
        forward_pass(
            model,
            input_ids=row,
            attention_mask=torch.ones_like(row),
            position_ids=torch.arange(len(ids), device=row.device).unsqueeze(0),
            past_key_values=recorded,
            use_cache=True,
            logits_to_keep=1,
        )
    return fixed(recorded, len(ids))


def growing(prefix: Cache | None, rows: int) -> Cache:
    """Return a cache that begins with the prefix and keeps what a batch reads after it.

    Args:
        prefix: From `compute_prefix`, or None.
        rows: Prompts of the batch.
    """
    grown = DynamicCache()
    for index, layer in enumerate(() if prefix is None else prefix.layers):
        sides = (side.expand(rows, -1, -1, -1) for side in (layer.keys, layer.values))
        grown.update(*sides, index)
    return grown


def fixed(recorded: Cache, columns: int, first: int = 0) -> Cache:
    """Return the first columns of what passes recorded, as a cache that never changes.

    Args:
        recorded: A cache that grew.
        columns: How many to keep.
        first: The first block whose keys and values are kept. Those before it, and those of
            blocks that were skipped, have this many columns and nothing in them.
    """
    layers = []
    for index, layer in enumerate(recorded.layers):
        if layer.is_initialized and index >= first:
            sides = [side[..., :columns, :].clone() for side in (layer.keys, layer.values)]
        else:
            sides = [torch.zeros(1, 1, columns, 1)] * 2
        layers.append(_FixedLayer(*sides))
    return Cache(layers=layers)
