"""One HDF5 shard: written whole or not at all, and never believed when its bytes have changed.

A shard is written beside its place under a temporary name, flushed to the disk and renamed, so a
kill leaves either nothing or all of it. Every array carries a Fletcher-32 checksum, and the file
uses the HDF5 1.10 format, whose metadata is checksummed too. Times are left out: the same numbers
give the same bytes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.errors import StoreError

Array = np.ndarray[Any, np.dtype[Any]]
Attributes = Mapping[str, str | int | Sequence[int]]
_FORMAT = ("v110", "v110")
_CHUNK_BYTES = 1 << 20


def _fixed(value: str | int | Sequence[int]) -> Any:
    # Variable-length strings would lie in a heap that no checksum covers.
    return np.bytes_(value.encode()) if isinstance(value, str) else np.asarray(value, np.int64)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a finished file its name, so that a crash finds the old state or the new one."""
    _sync(temporary)
    temporary.replace(path)
    if os.name == "posix":
        _sync(path.parent)


def write_shard(
    path: Path,
    arrays: Mapping[str, Array],
    attributes: Attributes,
    array_attributes: Mapping[str, Attributes],
) -> None:
    """Write a shard and rename it into place.

    Args:
        path: The shard's final name.
        arrays: One array per hook point, each (row, …), none empty.
        attributes: Of the file.
        array_attributes: Of each array, by its name.

    Raises:
        StoreError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as out:
            out.write(_image(arrays, attributes, array_attributes))
        replace_durably(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path}: cannot be written ({_reason(error)}); make room or choose another folder, "
            "then run the same command again: finished shards are kept"
        ) from error


def _image(
    arrays: Mapping[str, Array],
    attributes: Attributes,
    array_attributes: Mapping[str, Attributes],
) -> memoryview:
    """The shard's bytes. Made in memory: HDF5 crashes the process when a disk fills beneath it."""
    import h5py

    image = io.BytesIO()
    with h5py.File(image, "w", libver=_FORMAT) as file:
        for key, value in attributes.items():
            file.attrs[key] = _fixed(value)
        for name, array in arrays.items():
            rows = max(1, min(len(array), _CHUNK_BYTES // max(array[0].nbytes, 1)))
            dataset = file.create_dataset(
                name,
                data=array,
                chunks=(rows, *array.shape[1:]),
                fletcher32=True,
                track_times=False,
            )
            for key, value in array_attributes.get(name, {}).items():
                dataset.attrs[key] = _fixed(value)
    return image.getbuffer()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: this shard is missing; run the same capture again to complete the store"
        ) from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise StoreError(
            f"{path}: truncated or corrupt shard ({_reason(error)}); "
            "delete it and run the same capture again"
        ) from error


def read_attributes(path: Path) -> dict[str, Any]:
    """The file's attributes, as plain Python values.

    Raises:
        StoreError: The shard is missing, truncated or corrupt.
    """
    with _reading(path) as file:
        return {key: _plain(value) for key, value in file.attrs.items()}


def read_rows(path: Path, name: str, rows: Sequence[int]) -> Array:
    """Rows of one array, in the order asked for.

    Raises:
        StoreError: The shard is missing, truncated or corrupt, or its checksum does not match.
    """
    wanted, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    with _reading(path) as file:
        dataset = file[name]
        every = len(wanted) == dataset.shape[0]
        found: Array = dataset[...] if every else dataset[wanted]
    return found[places]
