"""The weight files of a checkpoint folder: what they hold, and their digest.

Headers are read here, without torch, so that a truncated file is one clear line before any
library has touched it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mechprobe.errors import CheckpointError
from mechprobe.textfiles import parse_json, read_object

_BITS: Final[Mapping[str, int]] = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_MAX_HEADER: Final = 100_000_000
_digests: dict[tuple[tuple[str, int, int], ...], str] = {}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file, as its header describes it."""

    name: str
    dtype: str
    """In safetensors' spelling: F16, BF16, I32, …"""
    shape: tuple[int, ...]
    nbytes: int
    file: Path

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is no JSON object.
    """
    return read_object(path, CheckpointError)


def read_table(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Every tensor of the files, by name, from the headers alone.

    Raises:
        CheckpointError: A file is truncated, corrupt, or repeats a tensor.
    """
    table: dict[str, TensorEntry] = {}
    for file in files:
        for entry in _read_header(file):
            if entry.name in table:
                raise CheckpointError(
                    f"{file}: {entry.name} is also in {table[entry.name].file.name}"
                )
            table[entry.name] = entry
    return table


def _read_header(file: Path) -> list[TensorEntry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{file}: truncated or not a safetensors file ({size} bytes); fetch it again"
            )
        raw = stream.read(length)
    try:
        header = parse_json(raw.decode())
        header.pop("__metadata__", None)
        rows = [_entry(file, name, row) for name, row in header.items()]
        end = max((int(row["data_offsets"][1]) for row in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{file}: corrupt safetensors header ({error}); fetch it again"
        ) from error
    if 8 + length + end != size:
        kind = "truncated" if size < 8 + length + end else "corrupt"
        raise CheckpointError(
            f"{file}: {kind}: {size} bytes where its header says {8 + length + end}; fetch it again"
        )
    return rows


def _entry(file: Path, name: str, row: Mapping[str, Any]) -> TensorEntry:
    shape = tuple(int(n) for n in row["shape"])
    begin, end = row["data_offsets"]
    expected = math.prod(shape) * _BITS[row["dtype"]] // 8
    if end - begin != expected:
        raise ValueError(f"{name} holds {end - begin} bytes and needs {expected}")
    return TensorEntry(name, row["dtype"], shape, expected, file)


def stored_dtype(table: Mapping[str, TensorEntry]) -> str:
    """Torch's name of the type in which most unquantized matrix elements are stored."""
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    sizes: Counter[str] = Counter()
    for entry in table.values():
        if len(entry.shape) > 1 and entry.dtype in names:
            sizes[names[entry.dtype]] += entry.size
    return sizes.most_common(1)[0][0] if sizes else "float32"


def digest_files(files: Iterable[Path]) -> str:
    """SHA-256 over the files' bytes one after the other, hex.

    Kept in memory per path, size and modification time: gigabytes are hashed once a process.
    """
    files = tuple(files)
    stats = [(file.resolve(), file.stat()) for file in files]
    key = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    if key not in _digests:
        total = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    total.update(block)
        _digests[key] = total.hexdigest()
    return _digests[key]
