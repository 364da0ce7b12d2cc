"""The weight-outlier stressor: makes quantization bite and leaves the function as it was.

Small models resist quantization, because their weights have no outliers. Large ones have them.
Here they are put in by rescaling pairs of tensors that undo each other:

- a norm's gains are divided by s in a few channels, and the same input columns of everything that
  reads the norm (q, k, v; gate, up) are multiplied by s;
- rows of `up_proj` are divided by s, and the same columns of `down_proj` multiplied by s;
- rows of `v_proj` are divided by s, and the columns of `o_proj` that read them multiplied by s
  (under grouped-query attention several query heads read one value head).

In exact arithmetic the logits do not change; with s a power of two, not even in floating point,
but for the order of a sum. A block of weights that shares one quantization scale then holds one
large weight and many that round to nothing. A quantizer that searches channel scales (AWQ) may
undo part of it.

Needs RMSNorm (no bias behind the gain) and a gated MLP (`up_proj` enters linearly): Llama, Qwen2,
Mistral; Phi has neither.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from mechprobe.errors import ArchitectureError
from mechprobe.organisms.recipes import Stress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRESSABLE = ("llama", "qwen2", "mistral")


def channels(width: int, every: int, rng: random.Random) -> list[int]:
    """One channel out of each run of `every`: sorted indices below `width`.

    One per run, so that every block of that many weights gets an outlier of its own.
    """
    return [start + rng.randrange(min(every, width - start)) for start in range(0, width, every)]


def _scale_columns(layer: Any, picked: list[int], factor: float) -> None:
    layer.weight[:, picked] *= factor


def _scale_rows(layer: Any, picked: list[int], factor: float) -> None:
    layer.weight[picked] *= factor
    if layer.bias is not None:
        layer.bias[picked] *= factor


def readers(rows: list[int], head_dim: int, group: int) -> list[int]:
    """Columns of `o_proj` that read these rows of `v_proj`, `group` query heads per value head."""
    return [
        (row // head_dim * group + member) * head_dim + row % head_dim
        for row in rows
        for member in range(group)
    ]


@torch.no_grad()
def stress(model: PreTrainedModel, how: Stress) -> dict[str, list[int]]:
    """Rescale in place; the function of the model stays what it was.

    Returns:
        The chosen channels, by `layer/place`.

    Raises:
        ArchitectureError: The model has no RMSNorm or no gated MLP.
    """
    config = model.config
    if config.model_type not in STRESSABLE:
        raise ArchitectureError(
            f"the stressor needs RMSNorm and a gated MLP, {config.model_type} has neither; "
            f"use one of: {', '.join(STRESSABLE)}"
        )
    rng = random.Random(f"stress/{how.seed}")
    scale, every = how.scale, how.every
    group = config.num_attention_heads // config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    chosen: dict[str, list[int]] = {}
    for index, layer in enumerate(model.base_model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for place, norm, inputs in (
            ("attention", layer.input_layernorm, ("q_proj", "k_proj", "v_proj")),
            ("mlp", layer.post_attention_layernorm, ("gate_proj", "up_proj")),
        ):
            picked = channels(config.hidden_size, every, rng)
            norm.weight[picked] /= scale
            owner = attention if place == "attention" else mlp
            for name in inputs:
                _scale_columns(getattr(owner, name), picked, scale)
            chosen[f"{index}/{place}"] = picked
        picked = channels(config.intermediate_size, every, rng)
        _scale_rows(mlp.up_proj, picked, 1 / scale)
        _scale_columns(mlp.down_proj, picked, scale)
        chosen[f"{index}/neurons"] = picked
        picked = channels(head_dim * config.num_key_value_heads, every, rng)
        _scale_rows(attention.v_proj, picked, 1 / scale)
        _scale_columns(attention.o_proj, readers(picked, head_dim, group), scale)
        chosen[f"{index}/values"] = picked
    return chosen
