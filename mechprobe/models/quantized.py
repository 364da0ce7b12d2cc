"""What a checkpoint folder claims about its quantization, held against its tensors' shapes.

The claim is a JSON file that anyone can edit; bits and group sizes are read from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.weights import TensorEntry, read_json

Method = Literal["none", "awq", "gptq", "compressed-tensors"]
Layout = Literal["awq", "gptq", "pack", "int8"]

_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "qweight": ("qweight", "qzeros", "scales", "g_idx"),
    "weight_packed": (
        "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx",
    ),
    "weight_scale": ("weight", "weight_scale", "weight_zero_point", "weight_g_idx"),
}  # fmt: skip
_CACHE_PARAMETERS: Final = r"[qkv]_(?:scale|zero_point)|[kv]_proj\.output_(?:scale|zero_point)"
_OPTIONAL: Final = {"g_idx", "weight_zero_point", "weight_g_idx", "weight_shape"}
_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "awq": ("gemm",),
    "gptq": ("gptq", "gptq_v2", "gptq_p"),
    "compressed-tensors": ("pack-quantized", "int-quantized"),
}


_Bits = Annotated[int, Field(ge=1, le=16)]
_GroupSize = Annotated[int, Field(ge=-1)]


class _Scheme(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    num_bits: _Bits | None = None
    group_size: _GroupSize | None = None
    symmetric: bool | None = None
    actorder: str | bool | None = None


class _Group(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    weights: _Scheme | None = None


class _Place(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    location: str


class _Rotation(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    apply: list[_Place] = []


class _Transforms(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    config_groups: dict[str, _Rotation] = {}


class _Written(BaseModel):
    """Types of what is read of a quantization configuration, whichever tool wrote it."""

    model_config = ConfigDict(strict=True, extra="ignore")
    bits: _Bits | None = None
    w_bit: _Bits | None = None
    group_size: _GroupSize | None = None
    q_group_size: _GroupSize | None = None
    sym: bool | None = None
    zero_point: bool | None = None
    desc_act: bool | None = None
    meta: dict[str, Any] | None = None
    config_groups: dict[str, _Group] | None = None
    transform_config: _Transforms | None = None


@dataclass(frozen=True, slots=True)
class QuantClaim:
    """What the configuration says."""

    method: Method
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    desc_act: bool | None = None
    format: str | None = None
    """`gemm` (AWQ); `gptq` or `gptq_v2`; `pack-quantized` or `int-quantized`."""
    mixed: bool = False
    """The configuration announces layers that differ from the rest."""
    by_gptqmodel: bool = False
    raw: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One quantized linear layer as the file holds it."""

    name: str
    layout: Layout
    bits: int
    group_size: int
    """Never -1: a whole row is its number of input features."""
    in_features: int
    out_features: int
    parts: Mapping[str, TensorEntry]

    @property
    def nbytes(self) -> int:
        """Bytes stored for this weight: integers, scales, zero points, group indices."""
        return sum(entry.nbytes for entry in self.parts.values())


def read_claim(folder: Path) -> QuantClaim:
    """Read the quantization configuration, from `config.json` or the files that older tools write.

    Raises:
        CheckpointError: A file is unreadable, or names a method or format that is not supported.
    """
    config = read_json(folder / "config.json")
    raw = config.get("quantization_config") or config.get("compression_config")
    for name in ("quantize_config.json", "quant_config.json"):
        if raw is None and (folder / name).is_file():
            raw = read_json(folder / name)
            raw.setdefault("quant_method", "awq" if "w_bit" in raw else "gptq")
    if not raw:
        return QuantClaim("none")
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder}: quantization_config: {raw!r:.40} holds no fields")
    method = str(raw.get("quant_method") or raw.get("method") or "").lower()
    if method in _FORMATS:  # others spell their bits as they like, and are refused below
        _refuse_online_rotations(_typed(raw, folder), folder)
    if _plain_weights(raw):
        return QuantClaim("none", raw=raw)
    if method not in _FORMATS:
        raise CheckpointError(
            f"{folder}: quantization method {method or '(none named)'!r} is not supported; "
            "AWQ, GPTQ, compressed-tensors (W4A16, int8) and GGUF are"
        )
    claim = _compressed_claim(raw) if method == "compressed-tensors" else _claim(method, raw)
    if claim.format not in _FORMATS[method]:
        raise CheckpointError(
            f"{folder}: {method} format {claim.format!r} is not supported; "
            f"{' or '.join(_FORMATS[method])} is"
        )
    return claim


def _plain_weights(raw: Mapping[str, Any]) -> bool:
    """Whether compressed-tensors only rotated the weights, or quantizes the KV cache alone."""
    served = raw.get("kv_cache_scheme") or raw.get("transform_config")
    return not raw.get("config_groups") and bool(served)


def serving_parameters(table: Mapping[str, TensorEntry], claim: QuantClaim) -> frozenset[str]:
    """Return the names of tensors that only a server's quantized cache and activations need.

    Scales and zero points of keys and values, and of statically quantized inputs and outputs, as
    `compressed_tensors` 0.20 names them (`KVCacheScaleType`, `QuantizationMetadata`).
    """
    raw = claim.raw or {}
    groups = (raw.get("config_groups") or {}).values()
    patterns = [_CACHE_PARAMETERS] if raw.get("kv_cache_scheme") else []
    patterns += [
        rf"{kind}_(?:scale|zero_point|global_scale)"
        for kind in ("input", "output")
        if any(group.get(f"{kind}_activations") for group in groups)
    ]
    either = re.compile(rf".*\.(?:{'|'.join(patterns)})") if patterns else None
    return frozenset(name for name in table if either and either.fullmatch(name))


def _refuse_online_rotations(written: _Written, folder: Path) -> None:
    """Refuse what SpinQuant (R3, R4) and QuIP leave to the running model.

    Rotations of `weight_input` and `weight_output` are in the stored weights already; every other
    location is an activation (`TransformLocation` of `compressed_tensors`).
    """
    groups = written.transform_config.config_groups if written.transform_config else {}
    for name, rotation in groups.items():
        for place in rotation.apply:
            if place.location not in ("weight_input", "weight_output"):
                raise CheckpointError(
                    f"{folder}: transform_config: {name} rotates activations while the model runs "
                    f"({place.location}), which no kernel here does; rotations that are merged "
                    "into the weights are read"
                )


def _typed(raw: Mapping[str, Any], folder: Path) -> _Written:
    try:
        return _Written.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, ("quantization_config", *first["loc"])))
        raise CheckpointError(f"{folder}: {field}: {first['msg'].lower()}") from error


def _claim(method: str, raw: Mapping[str, Any]) -> QuantClaim:
    given = raw.get("checkpoint_format") or raw.get("format") or raw.get("version")
    zero_point = raw.get("zero_point")
    quantizer = (raw.get("meta") or {}).get("quantizer") or ()
    return QuantClaim(
        method="awq" if method == "awq" else "gptq",
        bits=raw.get("bits") or raw.get("w_bit"),
        group_size=raw.get("group_size") or raw.get("q_group_size"),
        symmetric=raw.get("sym") if zero_point is None else not zero_point,
        desc_act=raw.get("desc_act"),
        format=str(given or ("gemm" if method == "awq" else "gptq")).lower(),
        mixed=bool(raw.get("dynamic")),
        by_gptqmodel="gptqmodel" in str(quantizer).lower(),
        raw=raw,
    )


def _compressed_claim(raw: Mapping[str, Any]) -> QuantClaim:
    groups = list((raw.get("config_groups") or {}).values())
    schemes = [dict(group.get("weights") or {}) for group in groups]
    first = schemes[0] if schemes else {}
    same = all(scheme == first for scheme in schemes)
    size = first.get("group_size")
    return QuantClaim(
        method="compressed-tensors",
        bits=first.get("num_bits") if same else None,
        group_size=(size if size else -1) if same else None,
        symmetric=first.get("symmetric") if same else None,
        desc_act=bool(first.get("actorder") == "group") if same else None,
        format=str(raw.get("format", "")).lower(),
        mixed=not same,
        raw=raw,
    )


def packed_modules(
    table: Mapping[str, TensorEntry],
    claim: QuantClaim,
    read_shape: Callable[[TensorEntry], tuple[int, ...]],
) -> dict[str, PackedModule]:
    """Group the packed tensors by layer and read bits and group size from their shapes.

    Args:
        table: Every tensor of the weight files.
        claim: What the configuration says; it settles what shapes leave open, and no more.
        read_shape: Reads the values of a `weight_shape` tensor.

    Raises:
        PrecisionError: The tensors contradict the claim.
        CheckpointError: A layer lacks one of its tensors, or there is no configuration.
    """
    found: dict[str, PackedModule] = {}
    for name in table:
        module, _, part = name.rpartition(".")
        if part in _PARTS and claim.method == "none":
            raise CheckpointError(
                f"{module}: packed weights, but neither config.json nor quantize_config.json says "
                "how they were quantized"
            )
        if part not in _PARTS or (part == "weight_scale" and f"{module}.weight_packed" in table):
            continue
        parts = {
            wanted: table[f"{module}.{wanted}"]
            for wanted in _PARTS[part]
            if f"{module}.{wanted}" in table
        }
        lost = [p for p in _PARTS[part] if p not in parts and p not in _OPTIONAL]
        if lost:
            raise CheckpointError(f"{module}: {', '.join(lost)} missing beside {part}")
        build = _gptq_or_awq if part == "qweight" else _compressed(read_shape)
        found[module] = build(module, parts, claim)
    if claim.method != "none" and not found:
        kinds = sorted({entry.dtype for entry in table.values() if len(entry.shape) > 1})
        raise PrecisionError(
            f"the configuration says {claim.method.upper()} {claim.bits}-bit, but all weights are "
            f"plain {'/'.join(kinds)} (silently dequantized?); it is not a quantized checkpoint"
        )
    return found


def _gptq_or_awq(name: str, parts: Mapping[str, TensorEntry], claim: QuantClaim) -> PackedModule:
    qweight, qzeros, scales = (parts[p].shape for p in ("qweight", "qzeros", "scales"))
    if not len(qweight) == len(qzeros) == len(scales) == 2 or qzeros[0] != scales[0]:
        raise CheckpointError(f"{name}: qweight, qzeros and scales do not fit together")
    groups, columns = scales
    layout: Layout = "gptq" if qweight[1] == columns else "awq"
    # Both pack the zero points along the output, so their width gives the bits.
    fits = [bits for bits in range(2, 9) if -(-columns * bits // 32) == qzeros[1]]
    if not fits or (layout == "awq" and qweight[1] != qzeros[1]):
        raise CheckpointError(f"{name}: qzeros {qzeros} fit no bit width for scales {scales}")
    bits = claim.bits if claim.bits in fits else fits[0]
    if claim.method != layout:
        raise PrecisionError(
            f"{name}: the configuration says {claim.method.upper()}, the tensors are packed as "
            f"{layout.upper()}"
        )
    if bits != claim.bits and not claim.mixed:
        raise PrecisionError(
            f"{name}: the configuration says {claim.bits} bits, the tensors hold {bits}"
        )
    if layout == "awq":
        rows = qweight[0]
    else:
        rows = parts["g_idx"].shape[0] if "g_idx" in parts else qweight[0] * 32 // bits
        if -(-rows * bits // 32) != qweight[0]:
            raise PrecisionError(f"{name}: {qweight[0]} words do not hold {rows} x {bits} bits")
        if bits in (5, 6, 7) or (claim.format == "gptq_p" and bits == 3):
            raise CheckpointError(f"{name}: {bits}-bit GPTQ in planar packing is not supported")
    size = _group_size(name, rows, groups, claim)
    return PackedModule(name, layout, bits, size, rows, columns, parts)


def _compressed(
    read_shape: Callable[[TensorEntry], tuple[int, ...]],
) -> Callable[[str, Mapping[str, TensorEntry], QuantClaim], PackedModule]:
    def build(name: str, parts: Mapping[str, TensorEntry], claim: QuantClaim) -> PackedModule:
        if claim.method != "compressed-tensors":
            raise PrecisionError(
                f"{name}: the configuration says {claim.method.upper()}, the tensors are "
                "packed as compressed-tensors"
            )
        scale = parts["weight_scale"].shape
        layout: Layout = "pack" if "weight_packed" in parts else "int8"
        packed = parts["weight_packed" if layout == "pack" else "weight"]
        if layout == "int8" and packed.dtype != "I8":
            raise CheckpointError(
                f"{name}: {packed.dtype} weights with scales are not supported; int8 are"
            )
        if "weight_shape" in parts:
            rows, columns = read_shape(parts["weight_shape"])
        else:
            per_word = 32 // (claim.bits or 4) if layout == "pack" else 1
            rows, columns = packed.shape[0], packed.shape[1] * per_word
        fits = [b for b in range(1, 9) if -(-columns * b // 32) == packed.shape[-1]]
        bits = 8 if layout == "int8" else claim.bits if claim.bits in fits else (fits or [0])[0]
        if len(scale) != 2 or scale[0] not in (1, rows) or not bits:
            raise CheckpointError(f"{name}: packed weight, scale and shape do not fit together")
        if claim.bits is not None and bits != claim.bits:
            raise PrecisionError(
                f"{name}: the configuration says {claim.bits} bits, the tensors hold {bits}"
            )
        size = _group_size(name, columns, scale[1], claim)
        return PackedModule(name, layout, bits, size, columns, rows, parts)

    return build


def _group_size(name: str, features: int, groups: int, claim: QuantClaim) -> int:
    claimed = claim.group_size
    if claimed is not None and claimed > 0 and -(-features // claimed) == groups:
        return claimed
    if groups == 1 and (claimed in (None, -1) or claim.mixed):
        return features
    if (claimed is None or claim.mixed) and features % groups == 0:
        return features // groups
    raise PrecisionError(
        f"{name}: the configuration says groups of {claimed}, the tensors have {groups} group(s) "
        f"over {features} input features"
    )
