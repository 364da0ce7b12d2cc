"""Rotary embeddings: llama.cpp's metadata and factor tensors, transformers' `rope_parameters`.

Both directions of one translation. Formulas: Llama 3's frequency bands as in transformers'
`_compute_llama3_parameters`; linear, YaRN and LongRoPE under the names both libraries give them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError

if TYPE_CHECKING:
    from mechprobe.models.gguf_file import GgufFile

Array = np.ndarray[Any, np.dtype[np.float32]]
Rope = dict[str, Any]

_YARN_BUILT_IN: Final = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""What llama.cpp takes for these architectures whatever a file says: it reads the `yarn_` keys for
a few others alone, and rounds the bounds of the ramp."""
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


def yarn_magnitude(factor: float) -> float:
    """By what YaRN enlarges queries and keys when nothing else is said (`attention_factor`)."""
    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def rope_from_metadata(file: GgufFile, head_dim: int, factors: Mapping[str, Array]) -> Rope:
    """Transformers' `rope_parameters` that compute what llama.cpp computes of a GGUF file.

    The `yarn_` keys of llama.cpp's converter (`yarn_attn_factor`, `yarn_beta_fast`, ...) are left
    alone, as llama.cpp leaves them for these architectures.

    Args:
        file: Header of the file.
        head_dim: Width of an attention head.
        factors: The dequantized factor tensors by GGUF name, empty where the file has none.

    Raises:
        ArchitectureError: A kind of scaling that has no counterpart.
    """
    theta = float(file.get("rope.freq_base", 10000.0))
    rope: Rope = {"rope_type": "default", "rope_theta": theta}
    kind = str(file.get("rope.scaling.type", "linear"))
    factor = float(file.get("rope.scaling.factor", 0.0)) or float(
        file.get("rope.scale_linear", 0.0)
    )
    magnitude = float(file.get("rope.scaling.attn_factor", 1.0))
    scaled = kind != "none" and factor not in (0.0, 1.0)
    if kind == "yarn":
        rope |= {
            "rope_type": "yarn",
            "factor": factor or 1.0,
            "original_max_position_embeddings": int(
                file.get("rope.scaling.original_context_length") or file.require("context_length")
            ),
            "attention_factor": yarn_magnitude(factor) * magnitude,
        }
    elif "rope_factors_long.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": [float(x) for x in factors["rope_factors_long.weight"]],
            "short_factor": [float(x) for x in factors["rope_factors_short.weight"]],
            "original_max_position_embeddings": int(
                file.get("rope.scaling.original_context_length") or file.require("context_length")
            ),
            "attention_factor": magnitude,
        }
    elif kind not in ("none", "linear", "longrope"):
        raise ArchitectureError(f"{file.path}: rope scaling {kind!r} is not supported")
    elif "rope_freqs.weight" in factors:
        rope = llama3_parameters(factors["rope_freqs.weight"], theta) or rope
    elif scaled:
        rope |= {"rope_type": "linear", "factor": factor}
    if factors and (scaled or kind == "yarn"):
        raise ArchitectureError(
            f"{file.path}: rope.scaling.factor {factor:g} ({kind}) beside a factor for each "
            "frequency has no counterpart in transformers; the native kernel (llama.cpp) may run it"
        )
    if magnitude != 1.0 and "attention_factor" not in rope:
        raise ArchitectureError(
            f"{file.path}: rope.scaling.attn_factor {magnitude:g} without YaRN or LongRoPE has no "
            "counterpart in transformers; the native kernel (llama.cpp) may run it"
        )
    rotary = int(file.get("rope.dimension_count", head_dim))
    if rotary != head_dim:
        rope["partial_rotary_factor"] = rotary / head_dim
    return rope


def rope_to_metadata(
    rope: Mapping[str, Any], head_dim: int, context: int, tensors: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata keys (without the architecture's prefix) and factor tensors for a config's rope.

    Args:
        rope: transformers' `rope_parameters` of the (full) attention.
        head_dim: Width of an attention head.
        context: `max_position_embeddings`.
        tensors: Names of the factor tensors that llama.cpp reads for the architecture.

    Raises:
        ArchitectureError: Scaling that llama.cpp computes otherwise or not; names the field.
    """
    rotary = int(rope.get("partial_rotary_factor", 1.0) * head_dim)
    keys: dict[str, Any] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": rotary,
    }
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return keys, {}
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}, {}
    if kind == "yarn":
        return keys | _yarn_keys(rope, context), {}
    if kind == "llama3" and "rope_freqs.weight" in tensors:
        return keys, {"rope_freqs.weight": llama3_factors(rope, rotary)}
    if kind == "longrope" and "rope_factors_long.weight" in tensors:
        original = int(rope["original_max_position_embeddings"])
        scale = rope.get("factor") or context / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        keys |= {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(rope.get("attention_factor") or attention),
        }
        return keys, {
            f"rope_factors_{span}.weight": np.asarray(rope[f"{span}_factor"], dtype=np.float32)
            for span in ("long", "short")
        }
    raise differs("rope_type", kind, "has no such rope")


def _yarn_keys(rope: Mapping[str, Any], context: int) -> dict[str, Any]:
    for field, value in _YARN_BUILT_IN.items():
        given = rope.get(field)
        if given is not None and given != value:
            raise differs(field, given, f"takes {value:g}" if value is not True else "truncates")
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or context / original)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
    }
    magnitude = yarn_magnitude(factor)
    if (wanted := _yarn_attention(rope, factor)) != magnitude:
        keys["rope.scaling.attn_factor"] = wanted / magnitude  # llama.cpp multiplies both
    return keys


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    """`attention_factor` as transformers' `_compute_yarn_parameters` derives it."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (above and below) or factor <= 1:
        return yarn_magnitude(factor)
    return float((0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1))


def differs(field: str, value: object, what: str) -> ArchitectureError:
    """The refusal of a rope that llama.cpp's graph computes otherwise, by the field's name."""
    return ArchitectureError(
        f"a GGUF would be another model: rope_parameters.{field}: {value!r} "
        f"(llama.cpp's graph {what})"
    )
