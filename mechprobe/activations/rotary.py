"""Rotary frequencies that follow the length of what is read, and which rows may share a pass.

transformers chooses such frequencies once for a whole batch, by its longest row
(`modeling_rope_utils.dynamic_rope_update`). LongRoPE takes its long factors past the original
context; dynamic NTK scaling takes others with every token past it, and keeps them for what is read
next. A row must get what it gets alone, so rows share a batch only where their frequencies are
equal for as long as they are decoded, and each pass begins from the original ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.models.rendering import EncodedPrompts

BatchKey = tuple[int, ...]
"""Rows whose keys are equal may share a batch; of equal lengths, they always are."""


def frequencies_at(config: Any, length: int) -> tuple[int, ...]:
    """Return what the frequencies of a pass over `length` tokens depend on besides the weights.

    Args:
        config: The transformers model's config.
        length: Tokens from the beginning of the row to its end, those in a cache included.

    Returns:
        One number for each rotary setting that follows the length: whether LongRoPE's long
        factors are taken, or the length that scales dynamic frequencies. Empty for other models.
    """
    text = config.get_text_config(decoder=True)
    found = []
    for rope in _settings(text):
        kind = rope.get("rope_type", "default")
        if kind == "longrope":
            found.append(int(length > rope["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            found.append(max(length, int(text.max_position_embeddings)))
    return tuple(found)


def follows_length(config: Any) -> bool:
    """Tell whether any rotary frequency of a model follows the length of what is read."""
    return bool(frequencies_at(config, 1))


def batch_key(config: Any, length: int, new_tokens: int = 0) -> BatchKey:
    """Return the key of a row: equal keys may share a batch.

    Args:
        config: The transformers model's config.
        length: Tokens of the prompt.
        new_tokens: Tokens generated at most. Where frequencies change meanwhile, rows must change
            together, and only rows of equal length do.
    """
    first = frequencies_at(config, length)
    # the last token is generated, but never read
    same = first == frequencies_at(config, length + max(new_tokens - 1, 0))
    return first if same else (-length,)


def batch_keys(config: Any, prompts: EncodedPrompts, new_tokens: int = 0) -> list[BatchKey]:
    """Return the `batch_key` of each prompt."""
    return [batch_key(config, len(row), new_tokens) for row in prompts.ids]


def longest_row(config: Any) -> int:
    """Return the most tokens that a row may have.

    Dynamic scaling begins past `max_position_embeddings` and reaches `factor` times as far.
    """
    text = config.get_text_config(decoder=True)
    factors = [
        float(rope.get("factor", 1.0))
        for rope in _settings(text)
        if "dynamic" in rope.get("rope_type", "default")
    ]
    return int(text.max_position_embeddings * max(factors, default=1.0))


def forward_pass(model: Any, **inputs: Any) -> Any:
    """Run a transformers model once, whatever it has read before.

    Args:
        model: The transformers model.
        inputs: Of its forward.
    """
    if any("dynamic" in rope.get("rope_type", "default") for rope in _settings(model.config)):
        for module in model.modules():
            _reset(module)
    return model(**inputs)


def _reset(module: Any) -> None:
    """Take back the frequencies of the original context, if this is a dynamic rotary embedding."""
    kinds = getattr(module, "rope_type", None)
    if kinds is None or not hasattr(module, "original_max_seq_len"):
        return
    by_layer = kinds if isinstance(kinds, Mapping) else {"": kinds}
    for layer, kind in by_layer.items():
        prefix = f"{layer}_" if layer else ""
        if "dynamic" in kind:
            original = getattr(module, f"{prefix}original_inv_freq")
            setattr(module, f"{prefix}inv_freq", original.clone())
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _settings(config: Any) -> Sequence[Mapping[str, Any]]:
    """The rotary settings: one mapping, or one for each layer type."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None)
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]
