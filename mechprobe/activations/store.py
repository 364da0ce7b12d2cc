"""Activations on disk: a folder with a plan, and HDF5 shards that fill it in.

    capture.json        the plan, written first: what is captured, in which order
    shard-00000.h5 …    one dataset per hook point, each (row, position, width)

Rows lie in the order of the plan (prompts sorted by length); readers get the prompts' own order.
Reading needs numpy and h5py, never torch. A shard is one unit of loss and of resume: what a killed
capture leaves is a prefix of whole shards, and shards are a function of the plan alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.activations.plan import CapturePlan, StoreDtype
from mechprobe.activations.shards import (
    Array,
    Attributes,
    Layout,
    read_attributes,
    read_rows,
    replace_durably,
    write_shard,
)
from mechprobe.errors import HookNameError, NumericsError, StaleStoreError, StoreError

MANIFEST = "capture.json"


class ActivationStore:
    """Activations of many prompts at some hook points, read shard by shard.

    Example:
        >>> store = ActivationStore.open("activations")        # doctest: +SKIP
        >>> store["blocks.3.hook_resid_post"].shape            # doctest: +SKIP
        (200, 1, 4096)
    """

    def __init__(self, path: Path, plan: CapturePlan) -> None:
        self.path = path
        self.plan = plan

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """The store in a folder, finished or not.

        Raises:
            StoreError: There is none, or its plan cannot be read.
        """
        folder = Path(path)
        manifest = folder / MANIFEST
        try:
            return cls(folder, CapturePlan.from_json(manifest.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise StoreError(f"{folder}: no activation store here ({MANIFEST} missing)") from error
        except (OSError, ValueError) as error:
            raise StaleStoreError(
                f"{manifest}: unreadable plan ({error}); delete the folder and capture again"
            ) from error

    @classmethod
    def create(cls, path: str | Path, plan: CapturePlan) -> ActivationStore:
        """Begin a store, or go on with one whose plan is the same.

        Raises:
            StaleStoreError: The folder holds another capture, or a shard that is not this plan's.
            StoreError: It cannot be written.
        """
        folder = Path(path)
        if (folder / MANIFEST).exists():
            store = cls.open(folder)
            if store.plan != plan:
                raise StaleStoreError(
                    f"{folder}: holds another capture (its {store.plan.differences(plan)} differ); "
                    "choose another folder, or delete this one"
                )
            for shard in store.finished_shards():
                try:
                    store.check_shard(shard)
                except StoreError as error:
                    raise StaleStoreError(str(error)) from error
            return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("shard-*.h5")):
                raise StaleStoreError(
                    f"{folder}: has shards and no {MANIFEST}; delete the folder and capture again"
                )
            temporary = folder / f".{MANIFEST}.part"
            temporary.write_text(plan.to_json(), encoding="utf-8")
            replace_durably(temporary, folder / MANIFEST)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written ({error.strerror or error})") from error
        return cls(folder, plan)

    @property
    def names(self) -> tuple[str, ...]:
        """Hook points, in the order they were asked for."""
        return self.plan.points

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions, counted from the end."""
        return self.plan.positions

    @property
    def n_prompts(self) -> int:
        """Prompts of the capture."""
        return len(self.plan.order)

    @property
    def digest(self) -> str:
        """Identity of the capture: model, prompts, points, positions and how it was run."""
        return self.plan.digest

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.finished_shards()) == self.plan.n_shards

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the capture, in words; among them shards made with smaller batches."""
        smaller: dict[int, int] = {}
        for shard in self.finished_shards():
            size = int(self.check_shard(shard)["batch_size"])
            if size < self.plan.batch_size:
                smaller[size] = smaller.get(size, 0) + 1
        words = [
            f"out of memory: {count} of {self.plan.n_shards} shards ran with batches of {size}"
            for size, count in smaller.items()
        ]
        return (*self.plan.notes, *words)

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.path / f"shard-{shard:05d}.h5"

    def finished_shards(self) -> tuple[int, ...]:
        """Shards on the disk, ascending."""
        return tuple(k for k in range(self.plan.n_shards) if self.shard_path(k).exists())

    def check_shard(self, shard: int) -> dict[str, Any]:
        """The attributes of a shard that opens and was made by this plan.

        Raises:
            StoreError: It is truncated, corrupt, or another capture's.
        """
        path = self.shard_path(shard)
        found = read_attributes(path)
        if found.get("capture") != self.digest or found.get("shard") != shard:
            raise StoreError(
                f"{path}: belongs to another capture; delete it and run the same capture again"
            )
        if type(found.get("batch_size")) is not int:
            raise StoreError(
                f"{path}: does not say how it was made; delete it and run the same capture again"
            )
        return found

    def write(self, shard: int, arrays: Mapping[str, Array], *, batch_size: int) -> None:
        """Write one shard.

        Args:
            shard: Its number; its rows are `plan.shard_prompts(shard)`, in that order.
            arrays: Float32, (row, position, width), one per hook point.
            batch_size: The smallest batch that was used, recorded.

        Raises:
            NumericsError: NaN or infinity, or a value that float16 cannot hold.
            StoreError: It cannot be written.
        """
        plan = self.plan
        rows = plan.shard_prompts(shard)
        for name in plan.points:
            shape = arrays[name].shape
            if shape[:2] != (len(rows), plan.n_positions(name)):
                raise ValueError(f"{name}: shape {shape} does not fit shard {shard}")
        write_shard(
            self.shard_path(shard),
            {name: _stored(name, arrays[name], plan.dtype) for name in plan.points},
            {
                "schema": plan.schema,
                "capture": self.digest,
                "model": plan.model,
                "prompts": plan.prompts,
                "shard": shard,
                "rows": rows,
                "batch_size": batch_size,
            },
            {name: self._labels(name) for name in plan.points},
        )

    def _labels(self, name: str) -> Attributes:
        """Attributes of a stored array."""
        return {"hook": name, "positions": self.plan.positions, "dtype": self.plan.dtype}

    def read_shard(self, shard: int, name: str, rows: Sequence[int] | None = None) -> Array:
        """Rows of a shard at one hook point, all by default, against their checksum.

        Raises:
            StoreError: It is missing, truncated, corrupt or another capture's.
        """
        self.check_shard(shard)
        shape = len(self.plan.shard_prompts(shard)), self.plan.n_positions(name)
        layout = Layout(shape, self.plan.dtype, self._labels(name))
        return read_rows(
            self.shard_path(shard), name, range(shape[0]) if rows is None else rows, layout
        )

    def __contains__(self, name: object) -> bool:
        """Whether a hook point was captured."""
        return name in self.plan.points

    def __iter__(self) -> Iterator[str]:
        """Names of the hook points."""
        return iter(self.plan.points)

    def __getitem__(self, name: str) -> Array:
        """All prompts at one hook point, shape (prompt, position, width), in their own order."""
        return self.read(name, range(self.n_prompts))

    def read(self, name: str, rows: Sequence[int]) -> Array:
        """Some prompts at one hook point, shape (len(rows), position, width), in that order.

        Raises:
            HookNameError: The point was not captured.
            StoreError: A shard is missing, truncated or corrupt.
            IndexError: A row is not a prompt of this store.
        """
        if name not in self.plan.points:
            near = difflib.get_close_matches(name, self.plan.points, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise HookNameError(f"{self.path}: {name!r} was not captured{hint}")
        wanted = np.arange(self.n_prompts)[np.asarray(rows, dtype=np.int64)]
        places = self._places[wanted]
        shards = places // self.plan.shard_rows
        out: Array | None = None
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            rows_here = (places[here] % self.plan.shard_rows).tolist()
            part = self.read_shard(int(shard), name, rows_here)
            if out is None:
                out = np.empty((len(wanted), *part.shape[1:]), dtype=part.dtype)
            if part.shape[1:] != out.shape[1:]:
                raise StoreError(
                    f"{self.shard_path(int(shard))}: {name} has another width than in the other "
                    "shards; delete it and run the same capture again"
                )
            out[here] = part
        if out is None:
            width = self.read_shard(0, name, [0]).shape[1:]
            return np.empty((0, *width), dtype=self.plan.dtype)
        return out

    def verify(self) -> None:
        """Read every byte of every shard against its checksum.

        Raises:
            StoreError: A shard is missing, truncated, corrupt or another capture's.
        """
        for shard in range(self.plan.n_shards):
            for name in self.plan.points:
                self.read_shard(shard, name)

    @cached_property
    def _places(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        places = np.empty(self.n_prompts, dtype=np.int64)
        places[np.asarray(self.plan.order, dtype=np.int64)] = np.arange(self.n_prompts)
        return places

    def __repr__(self) -> str:
        """What and how much."""
        done, all_ = len(self.finished_shards()), self.plan.n_shards
        return (
            f"ActivationStore({str(self.path)!r}: {self.n_prompts} prompts, {len(self.names)} "
            f"points, positions {list(self.positions)}, {self.plan.dtype}, {done}/{all_} shards)"
        )


def _stored(name: str, values: Array, dtype: StoreDtype) -> Array:
    if not np.isfinite(values).all():
        raise NumericsError(f"{name}: NaN or infinity in the activations")
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if not np.isfinite(stored).all():
        raise NumericsError(
            f"{name}: {float(np.abs(values).max()):.4g} does not fit float16; store as float32"
        )
    return stored
