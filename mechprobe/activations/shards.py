"""One HDF5 shard: written whole or not at all, and never believed when its bytes have changed.

A shard is written beside its place under a temporary name, flushed to the disk and renamed, so a
kill leaves either nothing or all of it. Every array carries a Fletcher-32 checksum, and the file
uses the HDF5 1.10 format, whose metadata is checksummed too. Times are left out: the same numbers
give the same bytes.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.errors import StoreError
from mechprobe.journal import sync

Array = np.ndarray[Any, np.dtype[Any]]
Attributes = Mapping[str, str | int | Sequence[int]]
_FORMAT = ("v110", "v110")
_SUPERBLOCK = 2
"""Version from which HDF5 checksums its own metadata."""
_CHUNK_BYTES = 1 << 20


def _fixed(value: str | int | Sequence[int]) -> Any:
    # Variable-length strings would lie in a heap that no checksum covers.
    return np.bytes_(value.encode()) if isinstance(value, str) else np.asarray(value, np.int64)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a finished file its name, so that a crash finds the old state or the new one."""
    sync(temporary)
    temporary.replace(path)
    if os.name == "posix":
        sync(path.parent)


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
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
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
        _require_plain_file(file)
        return {key: _plain(value) for key, value in file.attrs.items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """How one array of a shard was written."""

    shape: tuple[int, int]
    """Rows and positions; the width is the model's."""
    dtype: str
    attributes: Attributes


def read_rows(path: Path, name: str, rows: Sequence[int], layout: Layout) -> Array:
    """Rows of one array, in the order asked for.

    Raises:
        StoreError: The shard is missing, truncated or corrupt, its checksum does not match, or the
            array is not in the shard itself as `write_shard` puts it there.
    """
    wanted, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    with _reading(path) as file:
        _require_plain_file(file)
        dataset = _array(file, name, layout)
        every = len(wanted) == dataset.shape[0]
        found: Array = dataset[...] if every else dataset[wanted]
    return found[places]


def _require_plain_file(file: Any) -> None:
    """Refuse a file without the format's own checksums of metadata, or with foreign bytes ahead."""
    version = file.id.get_create_plist().get_version()[0]
    if version < _SUPERBLOCK or file.userblock_size:
        raise ValueError("rewritten by another program, without checksums of its metadata")


def _array(file: Any, name: str, layout: Layout) -> Any:
    """An array whose every byte lies in this file under a checksum.

    HDF5 follows links to other files, reads virtual arrays out of others, and passes over the
    checksum of a chunk whose mask says so; whatever is read that way, no checksum has seen.

    Raises:
        ValueError: It is not such an array, or has another shape, type or attributes.
    """
    import h5py

    if name not in file.keys() or not isinstance(file.get(name, getlink=True), h5py.HardLink):  # noqa: SIM118
        raise ValueError(f"{name} is missing, or a link to another place")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is no array")
    if dataset.is_virtual or dataset.external or dataset.chunks is None:
        raise ValueError(f"the numbers of {name} lie elsewhere, or under no checksum")
    filters = dataset.id.get_create_plist()
    kinds = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    if kinds != [h5py.h5z.FILTER_FLETCHER32]:
        raise ValueError(f"{name} has no checksum, or was packed by another program")
    if dataset.ndim != 3 or dataset.shape[:2] != layout.shape or dataset.dtype != layout.dtype:
        raise ValueError(f"{name} is {dataset.dtype}{list(dataset.shape)}, not as it was written")
    chunks = dataset.id.get_num_chunks()
    expected = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    masks = (dataset.id.get_chunk_info(i).filter_mask for i in range(chunks))
    if chunks != expected or any(masks):
        raise ValueError(f"a part of {name} is missing or has no checksum")
    found = {key: _plain(value) for key, value in dataset.attrs.items()}
    if found != {key: _plain(_fixed(value)) for key, value in layout.attributes.items()}:
        raise ValueError(f"{name} is labelled as another array")
    return dataset
