"""The header of a GGUF file: metadata and tensor table, read without torch and bounds-checked.

The `gguf` package's reader decodes every array element into a numpy view, which takes seconds for
a vocabulary of 150,000 tokens and turns a truncated file into an arbitrary exception. This reader
walks the header once and says in one line where a broken file ends. Layout: the GGUF v2/v3
specification of the ggml project.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_types import wrong_metadata

_MAGIC: Final = b"GGUF"
_SCALARS: Final[dict[int, struct.Struct]] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9
_U64: Final = _SCALARS[10]
_MAX_ENTRIES: Final = 1 << 24
_MAX_TEXT: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """In torch's order, slowest dimension first; GGUF stores the reverse."""
    type: str
    """ggml's storage type: F32, F16, Q4_K, …"""
    offset: int
    """Bytes from the beginning of the file."""
    nbytes: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata and tensor table of one file; the tensor data stay on disk."""

    path: Path
    metadata: Mapping[str, Any]
    """Keys to Python values; arrays are lists."""
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, for example `llama` or `phi2`."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `{architecture}.key`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """The value of `{architecture}.key`.

        Raises:
            CheckpointError: The key is missing.
        """
        value = self.get(key)
        if value is None:
            raise CheckpointError(
                f"{self.path}: metadata has no {self.architecture}.{key}; convert the model again"
            )
        return value

    def raw(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of one tensor, memory-mapped, shape (nbytes,)."""
        return np.memmap(
            self.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.nbytes,)
        )


class _Cursor:
    """A position in the mapped file; every read is checked against the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def truncated(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: truncated or corrupt GGUF header at byte {self.at} of "
            f"{len(self.data)}; fetch or convert the file again"
        )

    def take(self, layout: struct.Struct) -> Any:
        if self.at + layout.size > len(self.data):
            raise self.truncated()
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def count(self) -> int:
        number = int(self.take(_U64))
        if number > _MAX_ENTRIES:
            raise self.truncated()
        return number

    def string(self) -> str:
        length = int(self.take(_U64))
        if self.at + length > len(self.data):
            raise self.truncated()
        if length > _MAX_TEXT:
            raise self.truncated()
        text = self.data[self.at : self.at + length]
        self.at += length
        # llama.cpp allows any bytes in a token; surrogates keep them apart without losing any.
        return text.decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self.truncated()
        return self.take(layout)

    def array(self) -> list[Any]:
        kind, length = int(self.take(_SCALARS[4])), self.count()
        layout = _SCALARS.get(kind)
        if kind == _ARRAY:  # llama.cpp knows no arrays of arrays, and they could lie in each other
            raise self.truncated()
        if layout is None:
            return [self.value(kind) for _ in range(length)]
        end = self.at + length * layout.size
        if end > len(self.data):
            raise self.truncated()
        values = np.frombuffer(self.data, dtype=layout.format, count=length, offset=self.at)
        self.at = end
        return list(values.tolist())


def _tensor_table(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    rows: list[tuple[str, tuple[int, ...], Any, int]] = []
    for _ in range(count):
        name = cursor.string()
        dimensions = int(cursor.take(_SCALARS[4]))
        if not 1 <= dimensions <= 4:
            raise cursor.truncated()
        shape = tuple(int(cursor.take(_U64)) for _ in range(dimensions))[::-1]
        number = int(cursor.take(_SCALARS[4]))
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise CheckpointError(
                f"{cursor.path}: tensor {name} has the unknown storage type {number}; "
                "a newer `gguf` package may know it"
            ) from error
        rows.append((name, shape, kind, int(cursor.take(_U64))))
    start = cursor.at + -cursor.at % alignment
    table: dict[str, GgufTensor] = {}
    at = end = 0
    for name, shape, kind, offset in rows:
        if 0 in shape:
            raise CheckpointError(
                f"{cursor.path}: corrupt: tensor {name} of shape {list(shape)} holds nothing; "
                "fetch or convert the file again"
            )
        if name in table:
            raise CheckpointError(f"{cursor.path}: corrupt: two tensors are called {name}")
        if offset != at:
            raise CheckpointError(
                f"{cursor.path}: corrupt: tensor {name} begins {offset} bytes into the data, and "
                f"the tensors before it end at {at}; fetch or convert the file again"
            )
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            raise CheckpointError(
                f"{cursor.path}: corrupt: tensor {name} has rows of {shape[-1]} weights, and "
                f"{kind.name} stores {block} together; fetch or convert the file again"
            )
        nbytes = math.prod(shape) // block * block_bytes
        table[name] = GgufTensor(name, shape, kind.name, start + offset, nbytes)
        end = start + at + nbytes
        at += nbytes + -nbytes % alignment
    _check_length(cursor, table, {end, start + at} if rows else set())
    return table


def _check_length(cursor: _Cursor, table: Mapping[str, GgufTensor], ends: set[int]) -> None:
    """Refuse a file that does not end with its last tensor, or with the padding after it.

    Bytes put into the data or taken out of it shift what follows, and change the length.
    """
    size = len(cursor.data)
    if not ends or size in ends:
        return
    for tensor in table.values():
        if tensor.offset + tensor.nbytes > size:
            raise CheckpointError(
                f"{cursor.path}: truncated: tensor {tensor.name} ends at byte "
                f"{tensor.offset + tensor.nbytes} and the file has {size}; fetch or convert the "
                "file again"
            )
    raise CheckpointError(
        f"{cursor.path}: corrupt: {size} bytes where the tensors end at {max(ends)}; fetch or "
        "convert the file again"
    )


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Args:
        path: A single, unsplit, little-endian GGUF of version 2 or 3.

    Raises:
        CheckpointError: The file is missing, no GGUF, truncated, corrupt, split or big-endian.
    """
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _parse(data, path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path}: empty file; fetch or convert it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(data: mmap.mmap, path: Path) -> GgufFile:
    if data[:4] != _MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file (it does not begin with {_MAGIC.decode()})")
    cursor = _Cursor(data, path)
    cursor.at = 4
    version = int(cursor.take(_SCALARS[4]))
    if version not in (2, 3):
        raise CheckpointError(
            f"{path}: GGUF version {version} is not supported (2 and 3 are, little-endian)"
        )
    tensor_count, key_count = cursor.count(), cursor.count()
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"{path}: corrupt: the key {key} is there twice")
        metadata[key] = cursor.value(int(cursor.take(_SCALARS[4])))
    if said := wrong_metadata(metadata):
        raise CheckpointError(f"{path}: damaged metadata: {said}; fetch or convert the file again")
    parts = int(metadata.get("split.count", 0))
    if parts > 1:
        raise CheckpointError(
            f"{path}: one of {parts} parts; join them first: llama-gguf-split --merge FIRST OUT"
        )
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(
            f"{path}: corrupt: general.alignment is {alignment!r:.20}, which is no power of 2; "
            "fetch or convert the file again"
        )
    return GgufFile(path, metadata, _tensor_table(cursor, tensor_count, alignment))
