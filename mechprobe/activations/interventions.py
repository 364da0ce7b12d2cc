"""Interventions put into a model, and taken out again without touching anyone else's hooks.

Order is defined, and does not depend on who registered first: interventions run in the order in
which they were applied, outer contexts before inner ones; after them the user's own hooks; then
recorders. What is recorded is what the model goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechprobe.activations.edits import Ablate, Add, Intervention, Patch, ablate
from mechprobe.activations.forward import hidden_tensor
from mechprobe.activations.points import (
    HookPoint,
    graph_of,
    n_layers,
    resolve_point,
    resolve_points,
)
from mechprobe.errors import SpecError
from mechprobe.models.architectures import backbone_path, text_config

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

__all__ = ["Ablate", "Add", "Intervention", "Patch", "active", "applied", "prompt_rows"]

_Edit = Callable[[Tensor], Tensor]
_WRITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_per_layer_out")
"""Where a block's input, or something added to the stream, can be edited."""


@dataclass
class _State:
    """What is applied to one model now."""

    contexts: list[tuple[Intervention, ...]] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    prompt_length: int | None = None
    """Tokens of the running pass if it reads a prompt; None while generated tokens are read."""
    rows: tuple[int, ...] | None = None
    """Which prompt each row of the running batch is."""
    generated: int = 0
    """Generated tokens that the running pass reads after the prompt."""
    cached: int | None = 0
    """Leading columns of the running prompts that a cache holds; None while a pass reads what
    prompts begin with and not their end."""


_STATES: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def active(checkpoint: Checkpoint) -> tuple[Intervention, ...]:
    """The interventions applied to a checkpoint now, in the order in which they run."""
    state = _STATES.get(graph_of(checkpoint)[0])
    return () if state is None else tuple(item for context in state.contexts for item in context)


@contextmanager
def applied(checkpoint: Checkpoint, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Apply interventions to every forward pass inside the block, generation included.

    Contexts nest: the inner one's interventions run after the outer one's. On the way out only
    the hooks of this context are removed.

    Raises:
        HookNameError: A `Patch` names a point that this checkpoint lacks.
        SpecError: A shape, layer or value does not fit this checkpoint.
    """
    model, _ = graph_of(checkpoint)
    mine = tuple(interventions)
    for item in mine:
        _edits(checkpoint, item, _State())
    state = _STATES.setdefault(model, _State())
    state.contexts.append(mine)
    try:
        _register(checkpoint, state)
        yield
    finally:
        place = next(i for i, context in enumerate(state.contexts) if context is mine)
        del state.contexts[place]
        _register(checkpoint, state)


@contextmanager
def prompt_rows(checkpoint: Checkpoint, indices: Sequence[int], cached: int = 0) -> Iterator[None]:
    """Say which prompts the rows of the passes inside the block are, and where they begin.

    Batches are sorted by length; a `Patch` with values per prompt needs to know which row is
    whose, and refuses to guess. It acts in passes that read the end of a prompt, which are those
    that find as many columns in their cache as are named here.

    Args:
        checkpoint: One with a graph.
        indices: Which prompt each row is.
        cached: Leading columns of the prompts that the passes get from a cache.
    """
    state = _STATES.setdefault(graph_of(checkpoint)[0], _State())
    before = state.rows, state.cached
    state.rows, state.cached = tuple(indices), cached
    try:
        yield
    finally:
        state.rows, state.cached = before


@contextmanager
def beginning_read(model: nn.Module) -> Iterator[None]:
    """Say that the passes inside the block read what prompts begin with, and not their end.

    A `Patch` counts from the end of the prompt and has no place there.
    """
    state = _STATES.setdefault(model, _State())
    before, state.cached = state.cached, None
    try:
        yield
    finally:
        state.cached = before


@contextmanager
def answer_read_again(model: nn.Module, generated: int) -> Iterator[None]:
    """Say that the passes inside the block read a prompt and `generated` tokens of its answer.

    A `Patch` counts from the end of the prompt, and holds when it is read again.
    """
    state = _STATES.setdefault(model, _State())
    before, state.generated = state.generated, generated
    try:
        yield
    finally:
        state.generated = before


def _register(checkpoint: Checkpoint, state: _State) -> None:
    """Hook the whole stack of contexts anew, ahead of everyone else's hooks."""
    for handle in state.handles:
        handle.remove()
    state.handles = []
    model, row = graph_of(checkpoint)
    places: dict[tuple[str, str], list[tuple[HookPoint, _Edit]]] = {}
    items = active(checkpoint)
    for item in items:
        for point, edit in _edits(checkpoint, item, state):
            places.setdefault((point.module, point.side), []).append((point, edit))
    for (path, side), edits in places.items():
        module = model.get_submodule(path)
        if side == "in":
            before = partial(_edit_input, edits)
            handle = module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        else:
            handle = module.register_forward_hook(partial(_edit_output, edits), prepend=True)
        state.handles.append(handle)
    if any(isinstance(item, Patch) for item in items):
        backbone = model.get_submodule(backbone_path(model, row))
        watch = partial(_watch_prompt, state, _deepest(items))
        state.handles.append(
            backbone.register_forward_pre_hook(watch, prepend=True, with_kwargs=True)
        )


def _edits(
    checkpoint: Checkpoint, item: Intervention, state: _State
) -> list[tuple[HookPoint, _Edit]]:
    """What an intervention does, and where; also its validation against this checkpoint."""
    if isinstance(item, Patch):
        return [_patch(checkpoint, item, state)]
    model, _ = graph_of(checkpoint)
    width = int(text_config(model.config).hidden_size)
    if len(item.direction) != width:
        raise SpecError(
            f"{type(item).__name__}.direction has {len(item.direction)} dimensions; the stream of "
            f"{checkpoint.source} has {width}"
        )
    if isinstance(item, Add):
        _check_layers(checkpoint, "Add.layer", [item.layer])
        point = resolve_point(checkpoint, f"blocks.{item.layer}.hook_resid_pre")
        return [(point, partial(_add, item.step.to(model.device)))]
    if not isinstance(item, Ablate):
        raise SpecError(f"{item!r} is no intervention; give Ablate, Add or Patch")
    layers = range(n_layers(checkpoint)) if item.layers is None else item.layers
    _check_layers(checkpoint, "Ablate.layers", layers)
    edit = partial(_ablate, item.unit.to(model.device))
    points = resolve_points(checkpoint, "blocks.*")
    return [(p, edit) for p in points if p.layer in layers and p.kind in _WRITES]


def _check_layers(checkpoint: Checkpoint, name: str, layers: Sequence[int]) -> None:
    count = n_layers(checkpoint)
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise SpecError(f"{name}: no block {wrong[0]}; this model has blocks 0 to {count - 1}")


def _ablate(unit: Tensor, x: Tensor) -> Tensor:
    return ablate(x, unit)


def _add(step: Tensor, x: Tensor) -> Tensor:
    return x + step.to(x)


def _patch(checkpoint: Checkpoint, item: Patch, state: _State) -> tuple[HookPoint, _Edit]:
    point = resolve_point(checkpoint, item.point)
    width = item.values.shape[-1]
    if item.dims is None and point.width is not None and width != point.width:
        raise SpecError(f"Patch.values have width {width}; {point.name} has {point.width}")
    if item.dims is not None and point.width is not None and max(item.dims) >= point.width:
        raise SpecError(f"Patch.dims: {point.name} has no dimension {max(item.dims)}")
    values = item.values.to(graph_of(checkpoint)[0].device)
    return point, partial(_put, item, values, state)


def _put(item: Patch, values: Tensor, state: _State, x: Tensor) -> Tensor:
    """`x` with the values in place, if this pass reads a prompt."""
    if state.prompt_length is None:
        return x
    if item.per_prompt:
        values = values[_rows(item, state, x.shape[0])]
    elif item.dims is None and values.shape[-1] != x.shape[-1]:
        raise SpecError(
            f"Patch.values have width {values.shape[-1]}; {item.point} has {x.shape[-1]}"
        )
    # Gemma 4 drops positions from late blocks when it generates; what is not computed there has
    # no effect on what follows, so there is nothing to patch.
    length = x.shape[1] - state.generated
    kept = [k for k, position in enumerate(item.positions) if -position <= length]
    if len(kept) < len(item.positions) and x.shape[1] == state.prompt_length:
        raise SpecError(f"Patch.positions: the prompt has only {x.shape[1]} tokens")
    if not kept:
        return x
    values = values[..., kept, :].to(x)
    places = torch.tensor([length + item.positions[k] for k in kept], device=x.device)
    patched = x.clone()
    if item.dims is None:
        patched[:, places] = values
    else:
        dims = torch.tensor(item.dims, device=x.device)
        patched[:, places.unsqueeze(1), dims] = values
    return patched


def _rows(item: Patch, state: _State, batch: int) -> list[int]:
    if state.rows is None or len(state.rows) != batch:
        raise SpecError(
            "Patch.values are per prompt, and nobody said which prompts the rows of this batch "
            "are; run it through run_with_cache, or inside prompt_rows(checkpoint, indices)"
        )
    if max(state.rows) >= len(item.values):
        raise SpecError(
            f"Patch.values are for {len(item.values)} prompts; prompt {max(state.rows)} runs"
        )
    return list(state.rows)


def _deepest(items: Sequence[Intervention]) -> int:
    return max(-min(item.positions) for item in items if isinstance(item, Patch))


def _watch_prompt(
    state: _State, deepest: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Note whether this pass reads a prompt, and that the prompts are long enough."""
    ids = next(
        x
        for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        if isinstance(x, Tensor)
    )
    past = kwargs.get("past_key_values")
    cached = 0 if past is None else past.get_seq_length()
    state.prompt_length = ids.shape[1] if cached == state.cached else None
    mask = kwargs.get("attention_mask")
    if state.prompt_length is None or not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    shortest = int(mask.sum(dim=1).min()) - state.generated
    if shortest < deepest:
        raise SpecError(
            f"Patch.positions reach {deepest} tokens back; the shortest prompt of this batch has "
            f"{shortest}"
        )


def _edit_input(
    edits: Sequence[tuple[HookPoint, _Edit]],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = hidden_tensor(args, kwargs)
    if x is None:
        raise SpecError(f"{edits[0][0].name}: no activation passes here, so nothing can be edited")
    for point, edit in edits:
        edited = edit(x)
        if point.kind == "hook_resid_mid":
            # The block keeps this very tensor for its residual connection.
            x.copy_(edited)
        else:
            old, x = x, edited
            args = tuple(edited if arg is old else arg for arg in args)
            kwargs = {key: edited if arg is old else arg for key, arg in kwargs.items()}
    return args, kwargs


def _edit_output(
    edits: Sequence[tuple[HookPoint, _Edit]],
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> Any:
    x: Tensor = output[0] if isinstance(output, tuple) else output
    for point, edit in edits:
        x = edit(x) if point.scale == 1.0 else edit(x * point.scale) / point.scale
    return (x, *output[1:]) if isinstance(output, tuple) else x
