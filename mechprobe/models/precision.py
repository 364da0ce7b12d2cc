"""The precision of a checkpoint folder by its headers, against the one that was asked for.

Needs neither torch nor a weight, so that a label is checked before anything is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.cell import bits_of_mix
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.quantized import PackedModule, QuantClaim
from mechprobe.models.weights import TensorEntry

_PLAIN: Final[Mapping[str, str]] = {"F64": "FP64", "F32": "FP32", "F16": "FP16", "BF16": "BF16"}
_PACKING: Final[Mapping[str, str]] = {"pack-quantized": "pack", "int-quantized": "int8"}


def describe(
    table: Mapping[str, TensorEntry], modules: Mapping[str, PackedModule], claim: QuantClaim
) -> QuantInfo:
    """Describe a checkpoint's quantization from the shapes of its tensors.

    Bits per weight count every stored byte of a quantized layer: integers, scales, zero points and
    indices. Symmetry and activation order are left open.

    Raises:
        PrecisionError: The weights are of no floating-point type and no configuration reads them.
        CheckpointError: The files hold no matrix.
    """
    types = Counter(entry.dtype for entry in table.values())
    stored = sum(entry.nbytes for entry in table.values())
    packed = {entry.name for module in modules.values() for entry in module.parts.values()}
    loose = sum(entry.size for name, entry in table.items() if name not in packed)
    weights = sum(module.in_features * module.out_features for module in modules.values())
    total = 8 * stored / max(loose + weights, 1)
    if not modules:
        label, remarks = _plain_label(table)
        return QuantInfo(
            precision=label,
            method="none",
            bits_per_weight=total,
            bits_per_weight_total=total,
            tensor_types=dict(types),
            notes=remarks,
            warnings=_cache_warning(claim),
        )
    widths = {module.bits for module in modules.values()}
    sizes = {
        -1 if module.group_size == module.in_features else module.group_size
        for module in modules.values()
    }
    bits = widths.pop() if len(widths) == 1 else None
    # A layer as wide as one group is both "one group" and "one scale a row".
    size = claim.group_size if len(sizes - {-1}) != 1 else (sizes - {-1}).pop()
    notes = [] if bits else [f"mixed widths: {sorted(widths)} bits"]
    activations = _quantized_activations(claim)
    if activations:
        notes.append("the dense kernel reproduces the weights, not the quantized activations")
    return QuantInfo(
        precision=_packed_label(claim, bits, activations),
        method=claim.method,
        bits=bits,
        group_size=size,
        packing=_PACKING.get(str(claim.format), claim.format),
        bits_per_weight=8 * sum(module.nbytes for module in modules.values()) / weights,
        bits_per_weight_total=total,
        tensor_types=dict(types),
        notes=tuple(notes),
        warnings=_cache_warning(claim),
    )


def _cache_warning(claim: QuantClaim) -> tuple[str, ...]:
    """What a server does to keys and values, and no kernel here does."""
    scheme = (claim.raw or {}).get("kv_cache_scheme")
    if not scheme:
        return ()
    return (
        f"served with keys and values in {scheme.get('num_bits', 8)}-bit {scheme.get('type')} "
        "(kv_cache_scheme); here they stay in floating point",
    )


def _plain_label(table: Mapping[str, TensorEntry]) -> tuple[str, tuple[str, ...]]:
    sizes: Counter[str] = Counter()
    for entry in table.values():
        if len(entry.shape) > 1:
            sizes[entry.dtype] += entry.size
    if not sizes:
        raise CheckpointError("the weight files hold no matrix; is this a whole checkpoint?")
    dtype, most = sizes.most_common(1)[0]
    if dtype not in _PLAIN:
        raise PrecisionError(
            f"the weights are {dtype} and no configuration says how to read them; it is no "
            "16- or 32-bit checkpoint"
        )
    rest = sum(sizes.values()) - most
    notes = (f"{rest} weights are not {_PLAIN[dtype]}: {dict(sizes)}",) if rest else ()
    return _PLAIN[dtype], notes


def _packed_label(claim: QuantClaim, bits: int | None, activations: str) -> str:
    width = "mixed" if bits is None else str(bits)
    if claim.method == "compressed-tensors":
        return f"W{width}A{activations or '16'}"
    return f"{claim.method.upper()}-{'MIXED' if bits is None else f'INT{bits}'}"


def _quantized_activations(claim: QuantClaim) -> str:
    """Bits of quantized activations, as text; empty where they stay in floating point."""
    for group in ((claim.raw or {}).get("config_groups") or {}).values():
        if group.get("input_activations"):
            return str(group["input_activations"].get("num_bits", 8))
    return ""


def check_expected(info: QuantInfo, expect: str | None, what: str) -> None:
    """Refuse a checkpoint whose precision is not the one that was asked for.

    The name of a maker's own mix is found in a file that is labelled with as many bits.

    Raises:
        PrecisionError: It is another.
    """
    if expect is None or info.precision.casefold() == expect.casefold():
        return
    bits = bits_of_mix(expect) if info.method == "gguf" else None
    if bits is None or not info.precision.startswith(f"{bits}_"):
        names = {expect, info.precision} == {"F16", "FP16"}
        raise PrecisionError(
            f"{what}: {expect} was asked for, the tensors are {info.precision} "
            f"({info.bits_per_weight:.2f} bits per weight)"
            + "; F16 is a GGUF file, FP16 a folder"
            * names
        )
