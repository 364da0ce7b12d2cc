"""Which precision a GGUF file really has: its label checked against the types of its tensors.

A level names the type that most matrices are meant to have. Which matrices get another is the
maker's choice: llama.cpp's own mixes differ between its versions, and dynamic mixes go below the
level's type too. So a label is false where its type is nowhere, and no mix is expected of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.gguf_config import unread_keys
from mechprobe.models.gguf_file import GgufFile, GgufTensor, read_gguf
from mechprobe.models.gguf_levels import level_of_number

_FLOAT_BITS: Final = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
FLOAT_LEVELS: Final = ("F16", "BF16", "F32")
"""Levels that are not quantized."""
_FALLBACKS: Final = {
    "Q2_K": ("IQ4_NL", "Q4_0"),
    "Q3_K": ("IQ4_NL", "Q4_0"),
    "IQ4_XS": ("IQ4_NL",),
    "Q4_K": ("Q5_0",),
    "Q5_K": ("Q5_1",),
    "Q6_K": ("Q8_0",),
}
"""What llama.cpp's quantizer takes where a width is no multiple of 256 (F16 where none of 32): its
older versions the first, its newer ones the last."""
_RELEASED_PACKED: Final = "MXFP4"
"""Experts of gpt-oss are published in this type; a 16-bit file of it keeps them."""
_BASES: Final = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "Q8_0": "Q8_0",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
}
"""Level to the type that it is made of. Other levels mix types without a base and go unchecked."""


def _bits(kind: str) -> float:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return float(8 * block_bytes / block)


def _bits_per_weight(tensors: Iterable[GgufTensor]) -> float:
    rows = list(tensors)
    weights = sum(t.size for t in rows)
    return 8 * sum(t.nbytes for t in rows) / weights if weights else 0.0


def _label(file: GgufFile) -> str | None:
    number = file.metadata.get("general.file_type")
    if number is None:
        return None
    label = level_of_number(number & 0xFF)
    if label is None:
        raise CheckpointError(
            f"{file.path}: general.file_type is {number}, which the `gguf` package does not know"
        )
    return label


def _block(kind: str) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def _fits(tensor: GgufTensor, kind: str) -> bool:
    """Whether rows of this tensor can be stored in that type at all."""
    return tensor.shape[-1] % _block(kind) == 0


def _is_fallback(tensor: GgufTensor, base: str) -> bool:
    """Whether llama.cpp's quantizer takes this type where it cannot take `base`."""
    if tensor.type in ("F16", "F32"):
        return base not in _FLOAT_BITS and tensor.shape[-1] % 32 != 0
    return tensor.type in _FALLBACKS.get(base, ()) and not _fits(tensor, base)


def _counted(tensors: Iterable[GgufTensor]) -> str:
    counts = Counter(t.type for t in tensors)
    return ", ".join(f"{n} x {kind}" for kind, n in counts.most_common())


def _is_false(label: str, matrices: list[GgufTensor]) -> bool:
    """Whether no reading of the label fits the matrices."""
    kinds = {t.type for t in matrices}
    base = _BASES.get(label)
    if base is None:
        return kinds <= _FLOAT_BITS.keys()
    if base in _FLOAT_BITS:
        below = {kind for kind in kinds if _bits(kind) < _bits(base)}
        return base not in kinds or not below <= {_RELEASED_PACKED}
    if len(kinds) == 1:
        return not any(t.type == base or _is_fallback(t, base) for t in matrices)
    return not any(t.type == base or not _fits(t, base) for t in matrices)


def _check_label(path: Path, label: str, matrices: list[GgufTensor]) -> None:
    if matrices and _is_false(label, matrices):
        raise PrecisionError(
            f"{path}: mislabelled: general.file_type says {label} but the matrices are "
            f"{_counted(matrices)}; quantize the model again, or correct the label"
        )


def _warnings(label: str, matrices: list[GgufTensor], bits: float) -> tuple[str, ...]:
    """Fall-backs and what lies below the label, of a file with so many bits per weight."""
    base = _BASES.get(label)
    if base is None:
        return ()
    fallbacks = Counter((t.type, t.shape[-1]) for t in matrices if not _fits(t, base))
    found = [
        f"{n} matrices fell back to {kind}: width {width} is no multiple of {_block(base)}"
        for (kind, width), n in sorted(fallbacks.items())
    ]
    below = [t for t in matrices if _fits(t, base) and _bits(t.type) < _bits(base)]
    if below:
        found.append(
            f"a mix of its maker's: {_counted(below)} among {len(matrices)} matrices lie below "
            f"{base}; {bits:.2f} bits per weight"
        )
    return tuple(found)


def _notes(label: str, named: bool, matrices: list[GgufTensor]) -> tuple[str, ...]:
    notes = [] if named else [f"no general.file_type; called {label} after its commonest type"]
    base = _BASES.get(label)
    if base is None:
        return (*notes, f"the types of level {label} were not checked against the label")
    raised = [t for t in matrices if _fits(t, base) and _bits(t.type) > _bits(base)]
    if raised:
        notes.append(f"mixed level: {_counted(raised)} among {len(matrices)} matrices")
    return tuple(notes)


def quant_info(file: GgufFile) -> QuantInfo:
    """The precision of a GGUF file, from its tensors and checked against its label.

    Raises:
        CheckpointError: The label is unknown.
        PrecisionError: The labelled level's type is nowhere.
    """
    matrices = [t for t in file.tensors.values() if len(t.shape) > 1 and t.name.startswith("blk.")]
    label = _label(file)
    named = label is not None
    if label is None:
        weights: Counter[str] = Counter()
        for tensor in matrices:
            weights[tensor.type] += tensor.size
        label = weights.most_common(1)[0][0] if weights else "F32"
    _check_label(file.path, label, matrices)
    everything = list(file.tensors.values())
    quantized = [t for t in everything if t.type not in _FLOAT_BITS]
    bits = _bits_per_weight(quantized or matrices or everything)
    kinds = {t.type for t in matrices}
    uniform = next(iter(kinds)) if len(kinds) == 1 else None
    return QuantInfo(
        precision=label,
        method="gguf",
        bits=int(_bits(uniform)) if uniform and uniform not in _FLOAT_BITS else None,
        group_size=32 if uniform in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1") else None,
        packing="gguf",
        bits_per_weight=bits,
        bits_per_weight_total=_bits_per_weight(everything),
        tensor_types=dict(Counter(t.type for t in everything).most_common()),
        notes=(*_notes(label, named, matrices), *unread_keys(file)),
        warnings=_warnings(label, matrices, bits),
    )


def read_gguf_info(path: Path) -> QuantInfo:
    """The precision of a GGUF file; reads the header alone and loads no torch.

    Raises:
        CheckpointError: The file is missing, truncated, corrupt or of an unknown label.
        PrecisionError: The tensors are not of the level that `general.file_type` claims.
    """
    return quant_info(read_gguf(path))
