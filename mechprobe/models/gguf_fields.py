"""The fields of a transformers config: what a GGUF carries, what llama.cpp takes for granted.

Every field of every config class that can be written is one of three: carried by a metadata key or
a tensor; assumed, because llama.cpp's graph of the architecture has one value built in; or inert,
because the forward pass does not read it. A config whose assumed field has another value is refused
by the field's name, and so is a field that is none of the three and not at its default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import ArchitectureError
from mechprobe.models.gguf_names import GgufArchitecture

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SIZES: Final = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_RMS: Final = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_HEAD: Final = {"head_dim": "attention.key_length"}
_WINDOW: Final = {"sliding_window": "attention.sliding_window"}
FIELDS: Final[dict[str, dict[str, str]]] = {
    "llama": _SIZES | _RMS | _HEAD,
    "qwen2": _SIZES | _RMS,
    "qwen3": _SIZES | _RMS | _HEAD,
    "phi2": _SIZES | {"layer_norm_eps": "attention.layer_norm_epsilon"},
    "phi3": _SIZES | _RMS,
    "gemma2": _SIZES
    | _RMS
    | _HEAD
    | _WINDOW
    | {
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3": _SIZES
    | _RMS
    | _HEAD
    | _WINDOW
    | {"final_logit_softcapping": "final_logit_softcapping"},
    "olmo2": _SIZES | _RMS,
    "granite": _SIZES
    | _RMS
    | {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    },
    "smollm3": _SIZES | _RMS,
    "gptneox": {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    | {
        "layer_norm_eps": "attention.layer_norm_epsilon",
        "use_parallel_residual": "use_parallel_residual",
    },
    "gpt2": {
        "n_embd": "embedding_length",
        "n_layer": "block_count",
        "n_head": "attention.head_count",
        "n_inner": "feed_forward_length",
        "n_positions": "context_length",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
}
BIASES: Final = {
    "attention_bias": ("attn_q.bias", "attn_qkv.bias"),
    "mlp_bias": ("ffn_up.bias",),
}
BIAS_OPTIONS: Final = {
    "llama": ("attention_bias", "mlp_bias"),
    "granite": ("attention_bias", "mlp_bias"),
    "smollm3": ("attention_bias", "mlp_bias"),
    "olmo2": ("attention_bias",),
    "qwen3": ("attention_bias",),
    "gptneox": ("attention_bias",),
}
OPTIONAL: Final = frozenset(
    ("head_dim", "num_key_value_heads", "sliding_window", "final_logit_softcapping")
)
"""Fields whose key a file may lack."""
WHOLE_HIDDEN: Final = {"gemma2": 46, "gemma3": 62}
"""The 27B Gemmas, known by their depth, scale queries by hidden / heads and not by head width."""
WINDOW_PATTERN: Final = {"gemma2": 2, "gemma3": 6}
"""Every so many layers of these, one attends to the whole context and the others to the window."""
PARTIAL_ROTARY: Final = frozenset({"phi2", "phi3", "gptneox"})
"""Architectures whose heads may be rotated in part; in the others both programs rotate them whole.
"""
_ELSEWHERE: Final = frozenset({
    "vocab_size", "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "original_max_position_embeddings",
})  # fmt: skip
"""Carried by tensors, the tokenizer's part or the rope's, for all architectures."""
_INERT: Final = frozenset({
    # of every config class
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype",
    "torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "_name_or_path", "model_type", "output_attentions", "initializer_range",
    "use_cache",
    # dropout, which inference does not apply, and heads of other tasks
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "classifier_dropout", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout",
    # how it is computed, not what
    "pretraining_tp", "reorder_and_upcast_attn", "is_decoder",
    # what other fields (`layer_types`, `no_rope_layers`) were made from when the config was read
    "use_sliding_window", "max_window_layers", "no_rope_layer_interval", "_sliding_window_pattern",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assumption:
    """What a graph of llama.cpp has built in where a config has a field."""

    field: str
    holds: Callable[[PretrainedConfig], bool]
    built_in: str
    """What the graph does, for the message."""


def _one_of(field: str, *values: Any) -> Assumption:
    return Assumption(
        field, lambda config: getattr(config, field, values[0]) in values, f"takes {values[0]!r}"
    )


def _within_window(config: PretrainedConfig) -> bool:
    """Whether no layer has a window that the longest prompt exceeds."""
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    window = getattr(config, "sliding_window", None)
    return bool(not slides or window is None or window >= config.max_position_embeddings)


def _alternates(config: PretrainedConfig) -> bool:
    if set(config.layer_types) == {"full_attention"}:
        return bool(config.model_type == "gemma3_text")  # a file without a window says so
    period = WINDOW_PATTERN["gemma2" if config.model_type == "gemma2" else "gemma3"]
    return bool(list(config.layer_types) == window_layers(period, len(config.layer_types)))


def window_layers(period: int, layers: int) -> list[str]:
    """Name the layers' attention where every `period`-th sees the whole context; 0: none does."""
    kinds = ("full_attention", "sliding_attention")
    return [kinds[not period or i % period < period - 1] for i in range(layers)]


def query_scalar(name: str, layers: int, width: int, heads: int, head_dim: int) -> int:
    """The number by whose square root llama.cpp's Gemma divides its queries."""
    return width // heads if layers == WHOLE_HIDDEN[name] else head_dim


def _scales_queries(config: PretrainedConfig) -> bool:
    name = "gemma2" if config.model_type == "gemma2" else "gemma3"
    expected = query_scalar(
        name,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.head_dim,
    )
    return bool(config.query_pre_attn_scalar == expected)


_SILU: Final = (_one_of("hidden_act", "silu", "swish"),)
_GELU_TANH: Final = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_NO_WINDOW: Final = (
    Assumption(
        "sliding_window",
        _within_window,
        "attends to the whole context: the same if max_position_embeddings is within the window",
    ),
    Assumption(
        "layer_types",
        lambda c: (
            {*(getattr(c, "layer_types", None) or ())} <= {"full_attention", "sliding_attention"}
        ),
        "attends to the whole context",
    ),
)
_GEMMA: Final = (
    _one_of("hidden_activation", *_GELU_TANH[1:], *_GELU_TANH[:1]),
    _one_of("attention_bias", False),
    _one_of("use_bidirectional_attention", False, None),
    Assumption("layer_types", _alternates, "has windows in a fixed pattern of layers"),
    Assumption("query_pre_attn_scalar", _scales_queries, "derives it from the sizes"),
)
_ASSUMED: Final[dict[str, tuple[Assumption, ...]]] = {
    "llama": (*_SILU, *_NO_WINDOW),
    "qwen2": (*_SILU, *_NO_WINDOW),
    "qwen3": (*_SILU, *_NO_WINDOW, _one_of("attention_bias", False)),
    "phi2": (_one_of("hidden_act", *_GELU_TANH), _one_of("qk_layernorm", False)),
    "phi3": (*_SILU, *_NO_WINDOW),
    "gemma2": (
        *_GEMMA,
        Assumption(
            "attn_logit_softcapping", lambda c: c.attn_logit_softcapping is not None, "caps at 50"
        ),
        Assumption(
            "final_logit_softcapping", lambda c: c.final_logit_softcapping is not None, "caps at 30"
        ),
    ),
    "gemma3": (*_GEMMA, _one_of("attn_logit_softcapping", None)),
    "olmo2": (*_SILU, _one_of("attention_bias", False)),
    "granite": _SILU,
    "smollm3": (
        *_SILU,
        *_NO_WINDOW,
        _one_of("attention_bias", False),
        _one_of("mlp_bias", False),
        Assumption(
            "no_rope_layers",
            lambda c: (
                list(c.no_rope_layers)
                == [int((i + 1) % 4 != 0) for i in range(c.num_hidden_layers)]
            ),
            "leaves rope out at every fourth layer",
        ),
    ),
    "gptneox": (_one_of("hidden_act", "gelu"), _one_of("attention_bias", True)),
    "gpt2": (
        _one_of("activation_function", *_GELU_TANH),
        _one_of("scale_attn_weights", True),
        _one_of("scale_attn_by_inverse_layer_idx", False),
        _one_of("add_cross_attention", False),
    ),
}


def known_fields(name: str) -> frozenset[str]:
    """Every field that is carried, assumed or inert for llama.cpp's architecture `name`."""
    assumed = {assumption.field for assumption in _ASSUMED[name]}
    return frozenset({*FIELDS[name], *BIAS_OPTIONS.get(name, ()), *assumed}) | _ELSEWHERE | _INERT


def differences(config: PretrainedConfig, architecture: GgufArchitecture) -> list[str]:
    """What of a config llama.cpp would not compute, each as `field: value (what it does)`."""
    found = [
        f"{a.field}: {getattr(config, a.field, None)!r} (llama.cpp's {architecture.name} graph "
        f"{a.built_in})"
        for a in _ASSUMED[architecture.name]
        if not a.holds(config)
    ]
    defaults = type(config)().to_dict()
    known = known_fields(architecture.name)
    found += [
        f"{field}: {getattr(config, field)!r} (mechprobe does not know what llama.cpp makes of it)"
        for field, default in defaults.items()
        if field not in known and getattr(config, field, default) != default
    ]
    return found


def suspects(config: PretrainedConfig, architecture: GgufArchitecture) -> list[str]:
    """`differences`, and fields of `config.json` that its config class does not declare."""
    declared = {*type(config)().to_dict()} | known_fields(architecture.name)
    undeclared = [f"{k}: {v!r}" for k, v in config.to_dict().items() if k not in declared]
    return differences(config, architecture) + undeclared


def require_carried(config: PretrainedConfig, architecture: GgufArchitecture) -> None:
    """Refuse a config whose model a GGUF could not be.

    Raises:
        ArchitectureError: The message names the fields.
    """
    if found := differences(config, architecture):
        raise ArchitectureError(f"a GGUF would be another model: {'; '.join(found)}")
