"""What the stored scales and zero points say, and whether a load took every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.precision import describe
from mechprobe.models.quantized import PackedModule, QuantClaim
from mechprobe.models.unpack import Reader, group_index, scales_of, zero_format, zeros_of
from mechprobe.models.weights import TensorEntry


def inspect_tensors(
    table: Mapping[str, TensorEntry],
    modules: Mapping[str, PackedModule],
    claim: QuantClaim,
    read: Reader,
) -> QuantInfo:
    """Describe a checkpoint's quantization from its tensors.

    Scales, zero points and group indices are read (some 3 % of the bytes); the packed integers
    are not.

    Raises:
        PrecisionError: The zero points contradict the claimed format.
        CheckpointError: A scale is NaN or infinite, or an index out of range.
    """
    info = describe(table, modules, claim)
    if not modules:
        return info
    symmetric, ordered, wrapped = _scan(modules, claim, read)
    notes = list(info.notes)
    if symmetric is not None and claim.symmetric not in (None, symmetric):
        notes.append(
            f"the configuration says {'' if claim.symmetric else 'a'}symmetric, the zero points "
            f"are {'' if symmetric else 'a'}symmetric"
        )
    if wrapped:
        notes.append(f"{wrapped} zero points of 0 in format v1, where writers disagree on carries")
    return replace(info, symmetric=symmetric, desc_act=ordered, notes=tuple(notes))


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
