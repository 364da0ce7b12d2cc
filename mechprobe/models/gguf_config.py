"""A GGUF file's metadata as a transformers config, and back.

One table of fields serves both directions. What llama.cpp derives instead of storing (Gemma's
query scaling, SmolLM3's layers without rope) is derived here by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError
from mechprobe.models.gguf_file import GgufFile
from mechprobe.models.gguf_names import GgufArchitecture
from mechprobe.models.gguf_rope import rope_from_metadata, rope_to_metadata

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Array = np.ndarray[Any, np.dtype[np.float32]]

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
_FIELDS: Final[dict[str, dict[str, str]]] = {
    "llama": _SIZES | _RMS | _HEAD,
    "qwen2": _SIZES | _RMS,
    "qwen3": _SIZES | _RMS | _HEAD,
    "phi2": _SIZES | {"layer_norm_eps": "attention.layer_norm_epsilon"},
    "phi3": _SIZES | _RMS | _WINDOW,
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
_OPTIONAL: Final = frozenset(
    ("head_dim", "num_key_value_heads", "sliding_window", "final_logit_softcapping")
)
_WHOLE_HIDDEN: Final = {"gemma2": 46, "gemma3": 62}
"""The 27B Gemmas, known by their depth, scale queries by hidden / heads and not by head width."""
_BIASES: Final = {
    "attention_bias": ("attn_q.bias", "attn_qkv.bias"),
    "mlp_bias": ("ffn_up.bias",),
}
_BIAS_OPTIONS: Final = {
    "llama": ("attention_bias", "mlp_bias"),
    "granite": ("attention_bias", "mlp_bias"),
    "smollm3": ("attention_bias", "mlp_bias"),
    "olmo2": ("attention_bias",),
    "qwen3": ("attention_bias",),
    "gptneox": ("attention_bias",),
}
_SPECIAL: Final = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def _field(file: GgufFile, name: str, key: str) -> Any:
    value = file.get(key) if name in _OPTIONAL else file.require(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ArchitectureError(
                f"{file.path}: {key} differs from layer to layer; such models cannot be read "
                "densely, the native kernel (llama.cpp) may run it"
            )
        return value[0]
    return value


def _reject_unsupported(file: GgufFile, architecture: GgufArchitecture) -> None:
    if int(file.get("expert_count", 0) or 0) > 0:
        raise ArchitectureError(
            f"{file.path}: {architecture.name} with experts cannot be read densely; the native "
            "kernel (llama.cpp) may run it"
        )
    if architecture.name == "phi3" and file.get("attention.sliding_window") == 0:
        return
    if architecture.name not in _FIELDS:
        raise ArchitectureError(f"{file.path}: no config is known for {architecture.name!r}")


def config_from_metadata(
    file: GgufFile, architecture: GgufArchitecture, factors: Mapping[str, Array]
) -> PretrainedConfig:
    """The transformers config of the graph that computes what the file's model computes.

    Args:
        file: Header of the file.
        architecture: Its row of the table.
        factors: Dequantized rope factor tensors by name.

    Raises:
        CheckpointError: Metadata are missing.
        ArchitectureError: A variant that the graph cannot express.
    """
    from transformers import AutoConfig

    _reject_unsupported(file, architecture)
    found = {
        name: _field(file, name, key)
        for name, key in _FIELDS[architecture.name].items()
        if not (name == "use_parallel_residual" and file.get(key) is None)
    }
    options: dict[str, Any] = {k: v for k, v in found.items() if v is not None}
    if architecture.name == "gpt2":
        heads, width = options["n_head"], options["n_embd"]
    else:
        heads, width = options["num_attention_heads"], options["hidden_size"]
    head_dim = int(options.get("head_dim") or width // heads)
    options["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    options["tie_word_embeddings"] = "output.weight" not in file.tensors
    for option in _BIAS_OPTIONS.get(architecture.name, ()):
        options[option] = any(f"blk.0.{name}" in file.tensors for name in _BIASES[option])
    for option, key in _SPECIAL.items():
        options[option] = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if architecture.name in _WHOLE_HIDDEN:
        whole = options["num_hidden_layers"] == _WHOLE_HIDDEN[architecture.name]
        options["query_pre_attn_scalar"] = width // heads if whole else head_dim
    if architecture.name == "phi3" and not options.get("sliding_window"):
        options["sliding_window"] = None
    if architecture.name != "gpt2":
        rope = rope_from_metadata(file, head_dim, factors)
        if architecture.name == "gemma3":
            local = float(file.get("rope.freq_base_swa", 10000.0))
            rope = {
                "full_attention": rope,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            }
        if architecture.name == "phi3":
            options["original_max_position_embeddings"] = rope.get(
                "original_max_position_embeddings", options["max_position_embeddings"]
            )
        options["rope_parameters"] = rope
    return AutoConfig.for_model(architecture.model_types[0], **options)


def metadata_from_config(
    config: PretrainedConfig, architecture: GgufArchitecture
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata (with the architecture's prefix) and rope factor tensors for a config.

    Raises:
        ArchitectureError: The config has a feature that llama.cpp's graph lacks.
    """
    keys: dict[str, Any] = {}
    for name, key in _FIELDS[architecture.name].items():
        value = getattr(config, name, None)
        if value is not None:
            keys[key] = value
    if architecture.name == "gpt2":
        keys["feed_forward_length"] = config.n_inner or 4 * config.n_embd
        return {f"gpt2.{key}": value for key, value in keys.items()}, {}
    head_dim = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture.name == "smollm3" and list(config.no_rope_layers) != [
        int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)
    ]:
        raise ArchitectureError("llama.cpp's SmolLM3 skips rope at every fourth layer, no others")
    rope = config.rope_parameters
    if architecture.name == "gemma3":
        keys["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    extra, factors = rope_to_metadata(rope, head_dim, config.max_position_embeddings)
    return {f"{architecture.name}.{k}": v for k, v in (keys | extra).items()}, factors
