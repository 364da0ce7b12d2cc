"""A GGUF file's metadata as a transformers config, and back.

One table of fields serves both directions (`gguf_fields`). What llama.cpp derives instead of
storing (Gemma's query scaling, SmolLM3's layers without rope) is derived here by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError
from mechprobe.models.gguf_fields import (
    BIAS_OPTIONS,
    BIASES,
    FIELDS,
    OPTIONAL,
    PARTIAL_ROTARY,
    WINDOW_PATTERN,
    query_scalar,
    require_carried,
    window_layers,
)
from mechprobe.models.gguf_file import GgufFile
from mechprobe.models.gguf_names import GgufArchitecture
from mechprobe.models.gguf_rope import (
    differs,
    rope_from_metadata,
    rope_to_metadata,
    yarn_magnitude,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Array = np.ndarray[Any, np.dtype[np.float32]]
READING: Final = 2
"""Raised when the same file is read as another model than before."""
_SPECIAL: Final = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def _field(file: GgufFile, name: str, key: str) -> Any:
    value = file.get(key) if name in OPTIONAL else file.require(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ArchitectureError(
                f"{file.path}: {key} differs from layer to layer; such models cannot be read "
                "densely, the native kernel (llama.cpp) may run it"
            )
        return value[0]
    return value


def reject_unsupported(file: GgufFile, architecture: GgufArchitecture) -> None:
    """Refuse what llama.cpp computes of this file and the transformers graph cannot.

    Raises:
        ArchitectureError: The message names it.
    """
    name = architecture.name
    heads, width = file.get("attention.key_length"), file.get("attention.value_length")
    if int(file.get("expert_count", 0) or 0) > 0:
        what = "experts"
    elif file.get("attention.causal", True) is False:
        what = "attention to later tokens (attention.causal)"
    elif width is not None and width != heads:
        what = f"values of width {width} beside keys of {heads} (attention.value_length)"
    elif name == "olmo2" and file.get("attention.sliding_window"):
        what = "sliding windows (attention.sliding_window)"
    elif name == "granite" and file.get("rope.scaling.finetuned", True) is False:
        what = "no positions (rope.scaling.finetuned)"
    elif name == "gemma2" and file.get("rope.freq_base_swa", None) not in (
        None, file.get("rope.freq_base", 10000.0),
    ):  # fmt: skip
        what = "another rope in its windows (rope.freq_base_swa)"
    elif name not in FIELDS:
        raise ArchitectureError(f"{file.path}: no config is known for {name!r}")
    else:
        return
    raise ArchitectureError(
        f"{file.path}: {name} with {what} cannot be read densely; the native kernel (llama.cpp) "
        "may run it"
    )


def _layer_types(file: GgufFile, name: str, layers: int) -> list[str]:
    """Which of Gemma's layers llama.cpp gives a window."""
    if name == "gemma3" and not file.get("attention.sliding_window"):
        return ["full_attention"] * layers
    pattern = file.get("attention.sliding_window_pattern", WINDOW_PATTERN[name])
    if isinstance(pattern, list):
        return ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]
    return window_layers(int(pattern), layers)


def _rope(file: GgufFile, name: str, head_dim: int, factors: Mapping[str, Array]) -> dict[str, Any]:
    rope = rope_from_metadata(file, head_dim, factors)
    if "partial_rotary_factor" in rope and name not in PARTIAL_ROTARY:
        raise ArchitectureError(
            f"{file.path}: {name} with rope.dimension_count {file.get('rope.dimension_count')} of "
            f"{head_dim} cannot be read densely; its heads are rotated whole"
        )
    if name != "gemma3":
        return rope
    if file.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ArchitectureError(
            f"{file.path}: gemma3 with rope.scaling.attn_factor cannot be read densely; the native "
            "kernel (llama.cpp) may run it"
        )
    local = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base_swa", 10000.0))}
    return {"full_attention": rope, "sliding_attention": local}


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

    reject_unsupported(file, architecture)
    found = {
        name: _field(file, name, key)
        for name, key in FIELDS[architecture.name].items()
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
    for option in BIAS_OPTIONS.get(architecture.name, ()):
        options[option] = any(f"blk.0.{name}" in file.tensors for name in BIASES[option])
    for option, key in _SPECIAL.items():
        options[option] = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if architecture.name in WINDOW_PATTERN:
        layers = int(options["num_hidden_layers"])
        options["layer_types"] = _layer_types(file, architecture.name, layers)
        options["query_pre_attn_scalar"] = query_scalar(
            architecture.name, layers, width, heads, head_dim
        )
    if architecture.name == "phi3":
        options["sliding_window"] = None  # llama.cpp reads it and does without
    if architecture.name != "gpt2":
        rope = _rope(file, architecture.name, head_dim, factors)
        if architecture.name == "phi3":
            options["original_max_position_embeddings"] = rope.get(
                "original_max_position_embeddings", options["max_position_embeddings"]
            )
        options["rope_parameters"] = rope
    return AutoConfig.for_model(architecture.model_types[0], **options)


def unread_keys(file: GgufFile) -> tuple[str, ...]:
    """Say which keys of a file llama.cpp's graph leaves alone although they would matter.

    For the architectures of the table; the dense graph leaves them alone as well.
    """
    name = file.architecture
    if name not in FIELDS:
        return ()
    factor = float(file.get("rope.scaling.factor", 1.0))
    values = {
        "rope.scaling.yarn_attn_factor": yarn_magnitude(factor),
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
    }
    if name not in (*WINDOW_PATTERN, "olmo2"):
        values["attention.sliding_window"] = 0
    return tuple(
        f"{key} is {float(file.get(key, value)):g}, which llama.cpp does not read for {name}; it "
        f"takes {value:g}"
        for key, value in values.items()
        if not math.isclose(float(file.get(key, value)), value, rel_tol=1e-5)
    )


def metadata_from_config(
    config: PretrainedConfig, architecture: GgufArchitecture
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata (with the architecture's prefix) and rope factor tensors for a config.

    Raises:
        ArchitectureError: The config has a feature that llama.cpp's graph lacks.
    """
    require_carried(config, architecture)
    keys: dict[str, Any] = {}
    for name, key in FIELDS[architecture.name].items():
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
    rope = config.rope_parameters
    if architecture.name == "gemma3":
        if set(config.layer_types) == {"full_attention"}:
            keys.pop("attention.sliding_window", None)
        keys["rope.freq_base_swa"] = _local_theta(rope["sliding_attention"])
        rope = rope["full_attention"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and architecture.name not in PARTIAL_ROTARY:
        raise differs("partial_rotary_factor", rope["partial_rotary_factor"], "rotates whole heads")
    extra, factors = rope_to_metadata(
        rope, head_dim, config.max_position_embeddings, architecture.constants
    )
    if architecture.name == "gemma3" and "rope.scaling.attn_factor" in extra:
        raise differs("attention_factor", rope.get("attention_factor"), "scales its windows too")
    return {f"{architecture.name}.{k}": v for k, v in (keys | extra).items()}, factors


def _local_theta(rope: Mapping[str, Any]) -> float:
    if (kind := rope.get("rope_type", "default")) != "default":
        raise differs("sliding_attention.rope_type", kind, "does not scale its windows")
    return float(rope["rope_theta"])
