"""Rotary embeddings: llama.cpp's metadata and factor tensors, transformers' `rope_parameters`.

Both directions of one translation. Formulas: Llama 3's frequency bands as in transformers'
`_compute_llama3_parameters`; linear, YaRN and LongRoPE under the names both libraries give them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError

if TYPE_CHECKING:
    from mechprobe.models.gguf_file import GgufFile

Array = np.ndarray[Any, np.dtype[np.float32]]
Rope = dict[str, Any]

_YARN_KEYS: Final = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_LLAMA3_BANDS: Final = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Every published Llama 3 has these bands; only `factor` differs between sizes."""


def llama3_factors(rope: Mapping[str, Any], width: int) -> Array:
    """What Llama 3's rope divides each frequency by, shape (width / 2,).

    Args:
        rope: `rope_theta`, `factor`, `low_freq_factor`, `high_freq_factor` and
            `original_max_position_embeddings`.
        width: Rotary dimensions of a head.
    """
    wavelength = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    context = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    factors: Array = np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), dtype=np.float32)
    return factors


def llama3_parameters(factors: Array, theta: float) -> Rope | None:
    """The `rope_parameters` whose factors these are, None where they follow other bands."""
    guess: Rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max())}
    guess |= _LLAMA3_BANDS
    same = np.allclose(llama3_factors(guess, 2 * len(factors)), factors, rtol=1e-4)
    return guess if same else None


def rope_from_metadata(file: GgufFile, head_dim: int, factors: Mapping[str, Array]) -> Rope:
    """Transformers' `rope_parameters` for a GGUF file.

    Args:
        file: Header of the file.
        head_dim: Width of an attention head.
        factors: The dequantized factor tensors by GGUF name, empty where the file has none.

    Raises:
        ArchitectureError: A kind of scaling that has no counterpart.
    """
    theta = float(file.get("rope.freq_base", 10000.0))
    rope: Rope = {"rope_type": "default", "rope_theta": theta}
    kind = str(file.get("rope.scaling.type", "none"))
    if "rope_factors_long.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": [float(x) for x in factors["rope_factors_long.weight"]],
            "short_factor": [float(x) for x in factors["rope_factors_short.weight"]],
            "original_max_position_embeddings": file.require(
                "rope.scaling.original_context_length"
            ),
        }
        if (attention := file.get("rope.scaling.attn_factor")) is not None:
            rope["attention_factor"] = float(attention)
    elif "rope_freqs.weight" in factors:
        rope = llama3_parameters(factors["rope_freqs.weight"], theta) or rope
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": float(file.require("rope.scaling.factor"))}
    elif kind == "yarn":
        found = {name: file.get(key) for key, name in _YARN_KEYS.items()}
        rope |= {"rope_type": "yarn"} | {k: v for k, v in found.items() if v is not None}
    elif kind not in ("none", "longrope"):
        raise ArchitectureError(f"{file.path}: rope scaling {kind!r} is not supported")
    rotary = int(file.get("rope.dimension_count", head_dim))
    if rotary != head_dim:
        rope["partial_rotary_factor"] = rotary / head_dim
    return rope


def rope_to_metadata(
    rope: Mapping[str, Any], head_dim: int, context: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata keys (without the architecture's prefix) and factor tensors for a config's rope.

    Args:
        rope: transformers' `rope_parameters` of the (full) attention.
        head_dim: Width of an attention head.
        context: `max_position_embeddings`.

    Raises:
        ArchitectureError: A kind of scaling that has no counterpart.
    """
    rotary = int(rope.get("partial_rotary_factor", 1.0) * head_dim)
    keys: dict[str, Any] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": rotary,
    }
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return keys, {}
    if kind == "llama3":
        return keys, {"rope_freqs.weight": llama3_factors(rope, rotary)}
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}, {}
    if kind == "yarn":
        found = {key: rope.get(name) for key, name in _YARN_KEYS.items()}
        return keys | {"rope.scaling.type": "yarn"} | _present(found), {}
    if kind == "longrope":
        original = int(rope["original_max_position_embeddings"])
        scale = context / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        keys |= {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(rope.get("attention_factor") or attention),
        }
        return keys, {
            f"rope_factors_{span}.weight": np.asarray(rope[f"{span}_factor"], dtype=np.float32)
            for span in ("long", "short")
        }
    raise ArchitectureError(f"rope type {kind!r} cannot be written as GGUF")


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
