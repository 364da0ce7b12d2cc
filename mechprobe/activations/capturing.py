"""Capture: one observational pass over many prompts, streamed into a store that survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechprobe.activations.batching import groups, length_sorted
from mechprobe.activations.forward import Positions, normalize_positions
from mechprobe.activations.interventions import Intervention, active
from mechprobe.activations.plan import LOGITS, CapturePlan, StoreDtype
from mechprobe.activations.points import HookPoint, graph_of
from mechprobe.activations.prefix import Sharing
from mechprobe.activations.rotary import BatchKey, batch_keys
from mechprobe.activations.store import ActivationStore
from mechprobe.activations.streaming import (
    Points,
    Recorded,
    as_points,
    check_ids,
    check_reach,
    sharing_for,
    stream,
)
from mechprobe.errors import HookNameError
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

_SHARD_ROWS = 128
_SHARD_BYTES = 8 << 20
"""In memory twice while a shard is written: as arrays, and as the bytes of its file."""


def capture(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    points: Points,
    positions: Positions = "last",
    path: str | Path = "activations",
    *,
    dtype: StoreDtype = "float32",
    batch_size: int = 16,
    share_prefix: bool = True,
    shard_rows: int | None = None,
    interventions: Sequence[Intervention] = (),
    logits: bool = False,
    progress: Progress = silent,
) -> ActivationStore:
    """Stream activations of many prompts into an HDF5 store.

    The store is a function of the arguments. A killed run loses at most one shard; the same call
    again completes it to the same bytes, on the same machine and thread count. A finished store is
    returned without a forward pass.

    Args:
        checkpoint: One with a graph.
        prompts: Any number; memory does not grow with it.
        points: Names, globs or raw module paths.
        positions: `last`, positions from the end, or `all` where all prompts are equally long.
        path: Folder of the store.
        dtype: Of the stored numbers; float16 raises where a value does not fit.
        batch_size: Prompts in memory at once; halved, and recorded, where memory runs out.
        share_prefix: Compute the tokens that all prompts begin with once.
        shard_rows: Prompts per shard; None is about 128, fewer where rows are large.
        interventions: Active during the capture, beside any that are active already.
        logits: Also store the logits of the last position, as `logits`, shape (prompt, 1,
            vocabulary).
        progress: Told of prompts done and in all, at the start and after every batch.

    Raises:
        HookNameError: A point is unknown, or a position lies before a prompt's start.
        StoreError: The folder holds another capture, a damaged shard, or cannot be written.
        NumericsError: NaN or infinity at a point, or a value that float16 cannot hold.
    """
    chosen = as_points(checkpoint, points)
    places = _fixed_positions(prompts, positions)
    check_ids(checkpoint, prompts)
    check_reach(prompts, places)
    sharing = Sharing(0)
    if share_prefix:
        sharing = sharing_for(checkpoint, prompts, places, interventions)
    keys = batch_keys(graph_of(checkpoint)[0].config, prompts)
    plan = CapturePlan(
        model=checkpoint.digest,
        kernel=checkpoint.kernel,
        compute=str(graph_of(checkpoint)[0].dtype).removeprefix("torch."),
        prompts=prompts.digest,
        points=(*(point.name for point in chosen), *([LOGITS] if logits else [])),
        positions=places,
        dtype=dtype,
        order=length_sorted([len(row) for row in prompts.ids]),
        batch_size=batch_size,
        shard_rows=shard_rows
        or _rows_per_shard(checkpoint, chosen, len(places), batch_size, logits=logits),
        prefix=sharing.tokens,
        interventions=_describe([*active(checkpoint), *interventions]),
        notes=tuple(filter(None, (sharing.note, _parting(keys)))),
    )
    store = ActivationStore.create(path, plan)
    missing = [k for k in range(plan.n_shards) if k not in set(store.finished_shards())]
    done = len(prompts) - sum(len(plan.shard_prompts(k)) for k in missing)
    progress(done, len(prompts))
    if not missing:
        return store
    batches = [rows for k in missing for rows in groups(plan.shard_prompts(k), batch_size, keys)]
    passing = stream(
        checkpoint,
        prompts,
        chosen,
        places,
        share_prefix=share_prefix,
        logits=logits,
        interventions=interventions,
        batches=batches,
    )
    with closing(passing):
        for shard in missing:
            filling = _Shard(len(plan.shard_prompts(shard)), batch_size, frozenset(batches))
            while not filling.is_full():
                found = next(passing)
                filling.add(found)
                done += len(found.indices)
                if filling.is_full():
                    store.write(shard, filling.arrays, batch_size=filling.batch_size)
                progress(done, len(prompts))
    return store


class _Shard:
    """Rows of one shard, gathered batch by batch."""

    def __init__(self, rows: int, batch_size: int, planned: frozenset[tuple[int, ...]]) -> None:
        self.arrays: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        self.batch_size = batch_size
        self._rows, self._planned, self._filled = rows, planned, 0

    def is_full(self) -> bool:
        return self._filled == self._rows

    def add(self, found: Recorded) -> None:
        end = self._filled + len(found.indices)
        values = dict(found.values)
        if found.logits is not None:
            values[LOGITS] = found.logits.unsqueeze(1)
        for name, value in values.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty((self._rows, *value.shape[1:]), dtype=np.float32)
            self.arrays[name][self._filled : end] = value.to("cpu", torch.float32).numpy()
        self._filled = end
        if found.indices not in self._planned:  # halved for want of memory
            self.batch_size = min(self.batch_size, len(found.indices))


def _fixed_positions(prompts: EncodedPrompts, positions: Positions) -> tuple[int, ...]:
    places = normalize_positions(positions)
    if places is not None:
        return places
    lengths = {len(row) for row in prompts.ids}
    if len(lengths) > 1:
        raise HookNameError(
            f"positions 'all' need prompts of one length, and these have {min(lengths)} to "
            f"{max(lengths)} tokens; give positions from the end, such as range(-{min(lengths)}, 0)"
        )
    return tuple(range(-lengths.pop(), 0))


def _parting(keys: Sequence[BatchKey]) -> str:
    """Say that prompts were parted by their rotary frequencies; empty where they were not."""
    kinds = len(set(keys))
    return f"{kinds} rotary frequencies by length: batched apart" if kinds > 1 else ""


def _rows_per_shard(
    checkpoint: Checkpoint,
    points: Sequence[HookPoint],
    positions: int,
    batch_size: int,
    *,
    logits: bool,
) -> int:
    """A whole number of batches, about `_SHARD_ROWS` rows and at most about `_SHARD_BYTES`."""
    config = graph_of(checkpoint)[0].config.get_text_config(decoder=True)
    values = positions * sum(point.width or int(config.hidden_size) for point in points)
    row_bytes = 4 * (values + (int(config.vocab_size) if logits else 0))
    rows = min(_SHARD_ROWS, _SHARD_BYTES // max(row_bytes, 1))
    return batch_size * max(1, rows // batch_size)


def _describe(interventions: Sequence[Intervention]) -> str:
    """Canonical words for interventions; tensors by the digest of their numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(torch.as_tensor(value).detach().double().cpu().numpy())
            digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            return f"array{list(array.shape)}:{digest}"
        return list(value) if isinstance(value, tuple | list | range) else value

    if not interventions:
        return ""
    return json.dumps(
        [
            {"kind": type(item).__name__}
            | {field.name: plain(getattr(item, field.name)) for field in fields(item)}
            for item in interventions
        ],
        sort_keys=True,
        default=str,
    )
