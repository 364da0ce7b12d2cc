"""Arrays of an `.npz`, or one line."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.activations.shards import Array

_BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, RuntimeError,
           MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip
"""What zipfile and NumPy raise on damage: NotImplementedError is a RuntimeError."""


def read_npz(path: Path, refuse: Callable[[str], Exception]) -> dict[str, Array]:
    """All arrays of a file, by name; pickled ones are refused.

    Args:
        path: The file.
        refuse: Makes the error of a message.

    Raises:
        Exception: What `refuse` makes: it is missing or damaged. An array whose header asks for
            more than the file holds is refused before it is allocated.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            for part in parts.infolist():
                _require_size(parts, part)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _BROKEN as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise refuse(f"{path}: damaged ({said}); run the same command again") from error


def _require_size(parts: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    with parts.open(part) as stream:
        form: Any = np.lib.format
        version = form.read_magic(stream)
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, _, dtype = read(stream)
        if stream.tell() + math.prod(shape) * dtype.itemsize != part.file_size:
            raise ValueError(f"{part.filename} is not of the size that its header says")
