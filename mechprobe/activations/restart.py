"""Passes that begin in the middle: what an intervention cannot reach is not computed again.

An intervention at one block leaves the blocks before it as they were, and one at the last tokens of
a prompt leaves what stands to their left as it was, because attention is causal. So prompts are
read once as they are; an intervention then begins at the first block that it can change, from what
the block before it gave, and with the keys and values of the tokens that it cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from mechprobe.activations.batching import PaddedBatch
from mechprobe.activations.edits import Ablate, Add, Intervention, Patch
from mechprobe.activations.interventions import active
from mechprobe.activations.points import graph_of, n_layers, resolve_point
from mechprobe.activations.prefix import fixed, growing, why_not_cached
from mechprobe.models.architectures import backbone_path, text_config

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

_Rows = tuple[int, ...]
_PREFIX = -1
"""In place of a prompt's number: what all of them begin with."""
_SKIPPED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Blocks that the passes of a model leave out now."""


def first_block(checkpoint: Checkpoint, interventions: Sequence[Intervention]) -> int:
    """Return the first block that must run for the interventions to have their effect.

    Blocks before it give what they give without them. It is the number of blocks where not even
    the last one need run, and 0 where blocks read keys and values of earlier ones (Gemma 4).
    """
    if getattr(text_config(graph_of(checkpoint)[0].config), "num_kv_shared_layers", 0):
        return 0
    return min((_block_of(checkpoint, item) for item in interventions), default=0)


def share_run(checkpoint: Checkpoint) -> float:
    """Return which share of its blocks a model runs now."""
    skipped = _SKIPPED.get(graph_of(checkpoint)[0], 0)
    return 1 - skipped / n_layers(checkpoint) if skipped else 1.0


class Restart:
    """What a list of prompts gave as it is, for passes under interventions to begin from.

    A pass over the prompts without interventions of its own is kept, and one with some begins where
    they do (`stream`). Belongs to one model as it is, one list of prompts, and the interventions
    that are active around its passes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: Collection[int],
        depth: int | None = None,
        *,
        rows: Collection[int] | None = None,
        limit: float = float("inf"),
    ) -> None:
        """Keep nothing yet.

        Args:
            checkpoint: One with a graph.
            layers: Blocks at which passes may begin, see `first_block`.
            depth: How many of a prompt's last tokens the interventions act on; None for all.
            rows: Prompts that passes under interventions will run; None for all.
            limit: Bytes to keep at most. Beyond them nothing is kept, and every pass runs whole.
        """
        config = text_config(graph_of(checkpoint)[0].config)
        patches = [item for item in active(checkpoint) if isinstance(item, Patch)]
        reach = [-place for patch in patches for place in patch.positions]
        self._depth = None if depth is None or why_not_cached(config) else max(depth, *reach, 1)
        self._checkpoint = checkpoint
        self._layers = sorted({layer for layer in layers if layer > 0})
        self._rows, self._left = rows, limit
        self._outputs: dict[tuple[int, int], Tensor] = {}
        """What a block gave for a prompt, shape (token, width)."""
        self._ends: dict[_Rows, tuple[PaddedBatch, Cache]] = {}

    def end_of(self, rows: _Rows) -> tuple[PaddedBatch, Cache] | None:
        """Return the last tokens of a batch and the cache of what stands before them, if kept."""
        return self._ends.get(rows)

    @contextmanager
    def around(
        self,
        batch: PaddedBatch | None,
        cache: Cache | None,
        interventions: Sequence[Intervention],
    ) -> Iterator[Cache | None]:
        """Keep what the pass within gives, or begin it where its interventions do.

        Args:
            batch: What the pass reads; None for the prefix.
            cache: Of what the batch has before it.
            interventions: The pass's own; without any it is kept.

        Yields:
            The cache to run the pass with.
        """
        if interventions:
            layer = self._layer(interventions)
            output = self._output(batch, layer - 1) if layer else None
            with nullcontext() if output is None else _resumed(self._checkpoint, layer, output):
                yield cache
            return
        if batch is not None and self._depth is not None:
            cache = growing(cache, len(batch))
        with _outputs_kept(self._checkpoint, [layer - 1 for layer in self._layers]) as outputs:
            yield cache
        if len(outputs) == len(self._layers):  # else memory did not suffice
            self._keep(batch, cache, outputs)

    def _layer(self, interventions: Sequence[Intervention]) -> int:
        first = first_block(self._checkpoint, interventions)
        return max((layer for layer in self._layers if layer <= first), default=0)

    def _output(self, batch: PaddedBatch | None, block: int) -> Tensor | None:
        """What a block gave for a batch, shape (row, column, width), padding 0; None if unkept."""
        rows = (_PREFIX,) if batch is None else batch.indices
        found = [self._outputs.get((row, block)) for row in rows]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        columns = max(map(len, known))
        return torch.stack([pad(each, (0, 0, columns - len(each), 0)) for each in known])

    def _keep(
        self, batch: PaddedBatch | None, cache: Cache | None, outputs: Mapping[int, Tensor]
    ) -> None:
        kept = {}
        for block, output in outputs.items():
            if batch is None:
                kept[_PREFIX, block] = output[0]
                continue
            for row, values, padding in zip(batch.indices, output, batch.is_padding, strict=True):
                if self._rows is not None and row not in self._rows:
                    continue
                tokens = self._depth or int((~padding).sum())
                kept[row, block] = values[-tokens:].clone()
        end = None
        if batch is not None and cache is not None and self._depth is not None:
            end = _end_of(batch, cache, self._depth, min(self._layers, default=0))
        sides = (
            [] if end is None else [x for each in end[1].layers for x in (each.keys, each.values)]
        )
        size = sum(x.numel() * x.element_size() for x in (*kept.values(), *sides))
        self._left -= size
        if self._left < 0:  # a prefix that begins later than its batch would be of no use
            self._layers, self._depth = [], None
            self._outputs.clear()
            self._ends.clear()
            return
        self._outputs |= kept
        if batch is not None and end is not None:
            self._ends[batch.indices] = end


def _block_of(checkpoint: Checkpoint, item: Intervention) -> int:
    if isinstance(item, Add):
        return item.layer
    if isinstance(item, Ablate):
        return 0 if item.layers is None else min(item.layers)
    point = resolve_point(checkpoint, item.point)
    if point.layer is None:
        return 0
    return point.layer + (point.kind == "hook_resid_post")


def _end_of(batch: PaddedBatch, read: Cache, depth: int, first: int) -> tuple[PaddedBatch, Cache]:
    """The last columns of a batch, and the cache of all before them for blocks from `first` on."""
    columns = batch.attention_mask.shape[1] - depth
    end = replace(
        batch,
        input_ids=batch.input_ids[:, -depth:],
        position_ids=batch.position_ids[:, -depth:],
        prefix=columns,
    )
    return end, fixed(read, columns, first)


def _blocks(checkpoint: Checkpoint) -> list[nn.Module]:
    model, row = graph_of(checkpoint)
    return list(model.get_submodule(f"{backbone_path(model, row)}.{row.layers}").children())


@contextmanager
def _outputs_kept(checkpoint: Checkpoint, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what blocks give, shape (row, column, width), as it is before any hook sees it."""
    outputs: dict[int, Tensor] = {}
    blocks = _blocks(checkpoint)

    def kept(layer: int) -> Callable[..., Any]:
        run = blocks[layer].forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = run(*args, **kwargs)
            if isinstance(given, Tensor):  # of another kind, nobody could put it in its place
                outputs[layer] = given
            return given

        return forward

    with _forwards({blocks[layer]: kept(layer) for layer in layers}):
        yield outputs


@contextmanager
def _resumed(checkpoint: Checkpoint, layer: int, output: Tensor) -> Iterator[None]:
    """Skip the blocks before `layer`; the last of them gives `output`."""
    blocks = _blocks(checkpoint)

    def skipped(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    def given(*args: Any, **kwargs: Any) -> Tensor:
        return output.clone()  # a block may write into its input

    model = graph_of(checkpoint)[0]
    forwards: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(blocks[: layer - 1], skipped)
    before = _SKIPPED.get(model, 0)
    _SKIPPED[model] = layer
    try:
        with _forwards({**forwards, blocks[layer - 1]: given}):
            yield
    finally:
        _SKIPPED[model] = before


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Put other functions in the place of modules' `forward`; hooks stay and see what they give."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own
