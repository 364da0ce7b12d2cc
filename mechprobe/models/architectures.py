"""The one table of architectures: where, in each transformers graph, the residual stream is found.

A row holds module paths and nothing else. Which tensors they give is checked against arithmetic
when a checkpoint is loaded (`mechprobe.activations.check.check_architecture`), because a path
that is off by one norm gives plausible numbers and wrong science.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture. Paths of a block are relative to that block, the others to the backbone.

    A block computes, with `m` the residual multiplier,
    `resid_mid = resid_pre + m * attn_out` and `resid_post = resid_mid + m * mlp_out`; a parallel
    one `resid_post = resid_pre + m * attn_out + m * mlp_out`.
    """

    name: str
    model_types: tuple[str, ...]
    """`config.model_type` of the checkpoints that this row serves, wrappers last."""
    backbones: tuple[str, ...] = ("model",)
    """Where the stack of blocks may sit in the model; the first that exists is taken."""
    layers: str = "layers"
    embed: str = "embed_tokens"
    final_norm: str = "norm"
    head: str = "lm_head"
    """Path of the unembedding in the model, not in the backbone."""
    attn: str = "self_attn"
    attn_output: str = "o_proj"
    """The output projection, relative to `attn`; its input is the heads' concatenated output."""
    mlp: str = "mlp"
    down_projection: str = "down_proj"
    """Relative to `mlp`; its input is the neurons. Absent from mixture-of-experts layers."""
    attn_added: str = "self_attn"
    """The module whose output (times the multiplier) is added to the stream after attention."""
    mlp_added: str = "mlp"
    """The same after the MLP: a post-norm where there is one."""
    mid: str = "post_attention_layernorm"
    """The module whose input is the stream between attention and MLP: the pre-MLP norm, or the
    MLP itself in a post-norm block."""
    parallel: bool = False
    """Attention and MLP read the same stream; nothing lies between them."""
    residual_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    """What the token embedding is multiplied by outside its module (Granite)."""
    extra_added: str | None = None
    """A third thing added to the stream, after the MLP (Gemma 4's per-layer embeddings)."""
    layer_scalar: str | None = None
    """A tensor on the block that multiplies the whole stream on its way out (Gemma 4)."""
    lacks: tuple[tuple[str, str], ...] = ()
    """Hook points that this architecture has no tensor for, with the reason."""


_EXPERTS = (
    "mlp.hook_post",
    "the feed-forward is a mixture of experts, so a token has no single vector of neurons",
)
_GEMMA2 = Architecture(
    "gemma2",
    ("gemma2",),
    attn_added="post_attention_layernorm",
    mlp_added="post_feedforward_layernorm",
    mid="pre_feedforward_layernorm",
)
_WRAPPED = ("model", "model.language_model")

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("llama", ("llama",)),
    Architecture("mistral", ("mistral",)),
    Architecture("qwen2", ("qwen2",)),
    Architecture("qwen3", ("qwen3",)),
    Architecture(
        "phi",
        ("phi",),
        final_norm="final_layernorm",
        attn_output="dense",
        down_projection="fc2",
        parallel=True,
    ),
    Architecture("phi3", ("phi3",)),
    _GEMMA2,
    replace(_GEMMA2, name="gemma3", model_types=("gemma3_text", "gemma3"), backbones=_WRAPPED),
    replace(
        _GEMMA2,
        name="gemma4",
        model_types=("gemma4_text", "gemma4"),
        backbones=_WRAPPED,
        extra_added="post_per_layer_input_norm",
        layer_scalar="layer_scalar",
    ),
    Architecture(
        "olmo2",
        ("olmo2",),
        attn_added="post_attention_layernorm",
        mlp_added="post_feedforward_layernorm",
        mid="mlp",
    ),
    Architecture("granite", ("granite",)),
    Architecture("smollm3", ("smollm3",)),
    Architecture(
        "gpt_neox",
        ("gpt_neox",),
        backbones=("gpt_neox",),
        embed="embed_in",
        final_norm="final_layer_norm",
        head="embed_out",
        attn="attention",
        attn_output="dense",
        attn_added="attention",
        down_projection="dense_4h_to_h",
    ),
    Architecture(
        "gpt2",
        ("gpt2",),
        backbones=("transformer",),
        layers="h",
        embed="wte",
        final_norm="ln_f",
        attn="attn",
        attn_output="c_proj",
        attn_added="attn",
        down_projection="c_proj",
        mid="ln_2",
    ),
    Architecture("qwen3_moe", ("qwen3_moe",), lacks=(_EXPERTS,)),
    Architecture("gpt_oss", ("gpt_oss",), lacks=(_EXPERTS,)),
)


def text_config(config: PreTrainedConfig) -> Any:
    """The language model's config: the config itself, or the one inside a multimodal wrapper."""
    return config.get_text_config()


def row_of(model_type: str) -> Architecture:
    """Return the row that serves a `model_type`.

    Raises:
        ArchitectureError: None does; the message lists those that are served.
    """
    row = next((row for row in ARCHITECTURES if model_type in row.model_types), None)
    if row is None:
        known = ", ".join(sorted(name for row in ARCHITECTURES for name in row.model_types))
        raise ArchitectureError(
            f"model_type {model_type!r} has no row in the architecture table "
            f"(mechprobe/models/architectures.py); supported: {known}"
        )
    return row


def architecture_for(config_or_model: PreTrainedConfig | PreTrainedModel) -> Architecture:
    """The row that serves a config or a model, fitted to it.

    Fitted means: `parallel` follows GPT-NeoX's `use_parallel_residual`, the multipliers follow
    Granite's config, and Gemma 4's per-layer input is left out where the config has none.

    Raises:
        ArchitectureError: No row serves this `model_type`.
    """
    config = getattr(config_or_model, "config", config_or_model)
    row = row_of(config.model_type)
    text = text_config(config)
    return replace(
        row,
        parallel=row.parallel or bool(getattr(text, "use_parallel_residual", False)),
        residual_multiplier=_factor(text, "residual_multiplier"),
        embedding_multiplier=_factor(text, "embedding_multiplier"),
        extra_added=row.extra_added if getattr(text, "hidden_size_per_layer_input", 0) else None,
    )


def _factor(config: Any, name: str) -> float:
    value = getattr(config, name, None)
    return 1.0 if value is None else float(value)


def backbone_path(model: PreTrainedModel, row: Architecture) -> str:
    """Path of the module that holds embedding, blocks and final norm.

    Raises:
        ArchitectureError: The model's modules do not lie where the row says.
    """
    for path in row.backbones:
        try:
            model.get_submodule(f"{path}.{row.layers}")
        except AttributeError:
            continue
        return path
    tried = ", ".join(f"{path}.{row.layers}" for path in row.backbones)
    raise ArchitectureError(
        f"{type(model).__name__}: no blocks at {tried}; load the causal language model itself, "
        "not a bare backbone or a wrapper around it"
    )
