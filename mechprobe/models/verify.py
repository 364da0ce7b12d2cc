"""The precision that was found, read from the tensors, against the one that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.cell import bits_of_mix
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.quantized import PackedModule, QuantClaim
from mechprobe.models.unpack import Reader, group_index, scales_of, zero_format, zeros_of
from mechprobe.models.weights import TensorEntry

_PLAIN: Final[Mapping[str, str]] = {"F64": "FP64", "F32": "FP32", "F16": "FP16", "BF16": "BF16"}
_PACKING: Final[Mapping[str, str]] = {"pack-quantized": "pack", "int-quantized": "int8"}


def inspect_tensors(
    table: Mapping[str, TensorEntry],
    modules: Mapping[str, PackedModule],
    claim: QuantClaim,
    read: Reader,
) -> QuantInfo:
    """Describe a checkpoint's quantization from its tensors.

    Scales, zero points and group indices are read (some 3 % of the bytes); the packed integers
    are not. Bits per weight count every stored byte of a quantized layer: integers, scales, zero
    points and indices.

    Raises:
        PrecisionError: The zero points contradict the claimed format.
        CheckpointError: A scale is NaN or infinite, or an index out of range.
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
    symmetric, ordered, wrapped = _scan(modules, claim, read)
    widths = {module.bits for module in modules.values()}
    sizes = {
        -1 if module.group_size == module.in_features else module.group_size
        for module in modules.values()
    }
    bits = widths.pop() if len(widths) == 1 else None
    # A layer as wide as one group is both "one group" and "one scale a row".
    size = claim.group_size if len(sizes - {-1}) != 1 else (sizes - {-1}).pop()
    notes = [] if bits else [f"mixed widths: {sorted(widths)} bits"]
    if symmetric is not None and claim.symmetric not in (None, symmetric):
        notes.append(
            f"the configuration says {'' if claim.symmetric else 'a'}symmetric, the zero points "
            f"are {'' if symmetric else 'a'}symmetric"
        )
    if wrapped:
        notes.append(f"{wrapped} zero points of 0 in format v1, where writers disagree on carries")
    activations = _quantized_activations(claim)
    if activations:
        notes.append("the dense kernel reproduces the weights, not the quantized activations")
    return QuantInfo(
        precision=_packed_label(claim, bits, activations),
        method=claim.method,
        bits=bits,
        group_size=size,
        symmetric=symmetric,
        desc_act=ordered,
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


def _scan(
    modules: Mapping[str, PackedModule], claim: QuantClaim, read: Reader
) -> tuple[bool, bool, int]:
    """Symmetric? Groups out of order? How many zero points of 0 in format v1?"""
    symmetric, ordered, wrapped, shifted = True, False, 0, True
    for module in modules.values():
        if not bool(torch.isfinite(scales_of(module, read)).all()):
            raise CheckpointError(f"{module.name}: a scale is NaN or infinite; quantize it again")
        index = group_index(module, read)
        ordered |= bool((index[1:] < index[:-1]).any())
        zeros = zeros_of(module, read, claim)
        if zeros is None:
            continue
        middle = 0 if claim.method == "compressed-tensors" else 1 << (module.bits - 1)
        symmetric &= bool((zeros == middle).all())
        off = middle - 1 if zero_format(claim) == "v2" else middle + 1
        shifted &= bool((zeros == off).all())
        if module.layout == "gptq" and zero_format(claim) != "v2":
            wrapped += int((zeros == 0).sum())
    if claim.method == "gptq" and claim.symmetric and shifted:
        other = "gptq" if zero_format(claim) == "v2" else "gptq_v2"
        raise PrecisionError(
            f"every zero point is off by one: the configuration says format {claim.format}, the "
            f"tensors are in {other}; mend checkpoint_format"
        )
    return symmetric, ordered, wrapped


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
        raise PrecisionError(
            f"{what}: {expect} was asked for, the tensors are {info.precision} "
            f"({info.bits_per_weight:.2f} bits per weight)"
        )


def check_keys(
    what: str, missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> None:
    """Refuse a load that left parameters at random values or ignored stored tensors.

    Raises:
        CheckpointError: Any key is missing, unexpected or of another shape.
    """
    for kind, keys in (
        ("missing from the files", missing),
        ("of another shape than the configuration says", mismatched),
        ("in the files but not in the model", unexpected),
    ):
        if keys:
            raise CheckpointError(
                f"{what}: {len(keys)} tensor(s) {kind}, first {sorted(map(str, keys))[0]}"
            )
