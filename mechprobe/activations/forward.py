"""Forward passes that record: hooks that take the asked positions and stop when they have all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechprobe.activations.points import HookPoint, graph_of
from mechprobe.activations.rotary import forward_pass
from mechprobe.errors import HookNameError, NumericsError

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

Positions = Literal["last", "all"] | Sequence[int]


class _AllRecordedError(Exception):
    """Raised inside the graph once nothing further is needed; never leaves `Recorder.forward`."""


def normalize_positions(positions: Positions) -> tuple[int, ...] | None:
    """Positions as a tuple counted from the end, or None for all of them.

    Raises:
        HookNameError: A position is not negative, is repeated, or there are none.
    """
    if isinstance(positions, str):
        if positions == "last":
            return (-1,)
        if positions == "all":
            return None
        raise HookNameError(
            f"positions {positions!r}: use 'last', 'all' or a list such as [-2, -1]"
        )
    chosen = tuple(int(position) for position in positions)
    if not chosen or len(set(chosen)) != len(chosen) or max(chosen) >= 0:
        raise HookNameError(
            f"positions {list(chosen)}: give each once, counted from the end (-1 is the last)"
        )
    return chosen


def hidden_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The activation among a module's inputs: its first, or the one named `hidden_states`."""
    return next(
        (x for x in (*args, kwargs.get("hidden_states")) if isinstance(x, Tensor)),
        None,
    )


def take_positions(x: Tensor, positions: tuple[int, ...] | None) -> Tensor:
    """Copy positions (counted from the end) out of `x`, shape (batch, position, width).

    Always a copy of just those positions: a view would keep the whole tensor alive, and a later
    in-place operation of the model would change it.
    """
    if positions is None:
        return x.clone()
    first, last = positions[0], positions[-1]
    if positions == tuple(range(first, last + 1)):
        return x[:, first : (last + 1) or None].clone()
    index = torch.tensor([x.shape[1] + position for position in positions], device=x.device)
    return x.index_select(1, index)


class Recorder:
    """What `recorder` yields: run the model through it and read what the hooks took."""

    def __init__(
        self,
        model: nn.Module,
        points: Sequence[HookPoint],
        positions: tuple[int, ...] | None,
        stop: bool,
    ) -> None:
        self.values: dict[str, Tensor] = {}
        self._model = model
        self._points = points
        self._positions = positions
        self._stop = stop
        self._stopping = False

    def forward(self, **inputs: Any) -> Any:
        """One forward pass without gradients; `values` then holds what it gave.

        Args:
            inputs: Of the transformers model. With `stop` the pass ends at the last point that is
                needed, before the logits.

        Returns:
            The model's output, or None where the pass was stopped.

        Raises:
            HookNameError: A point's module did not run, or has fewer positions than asked for.
            NumericsError: NaN or infinity at a point; the message names it.
        """
        self.values = {}
        output = None
        self._stopping = self._stop
        try:
            with torch.no_grad():
                output = forward_pass(self._model, **inputs)
        except _AllRecordedError:
            pass
        finally:
            self._stopping = False
        silent = [point.name for point in self._points if point.name not in self.values]
        if silent:
            raise HookNameError(f"{silent[0]}: its module did not run in this forward pass")
        return output

    def take(self, point: HookPoint, x: Tensor | None) -> None:
        """Record one point; called by the hooks."""
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise HookNameError(
                f"{point.name}: no tensor of shape (batch, position, width) passes here"
            )
        if self._positions is not None and x.shape[1] < -min(self._positions):
            raise HookNameError(
                f"{point.name}: position {min(self._positions)} was asked for, but only "
                f"{x.shape[1]} positions pass here"
            )
        taken = take_positions(x, self._positions)
        self.values[point.name] = taken if point.scale == 1.0 else taken * point.scale
        if self._stopping and len(self.values) == len(self._points):
            raise _AllRecordedError

    def check_finite(self, keep: Tensor | None = None) -> None:
        """Complain of NaN or infinity in `values`.

        Args:
            keep: True where a row's position counts, shape (batch, position); None is everywhere.

        Raises:
            NumericsError: Names the first hook point, in order of computation, that has one.
        """
        for point in self._points:
            finite = torch.isfinite(self.values[point.name]).all(dim=-1)
            if keep is not None:
                finite = finite | ~keep.to(finite.device)
            if not bool(finite.all()):
                where = "" if point.layer is None else f" (layer {point.layer})"
                raise NumericsError(
                    f"NaN or infinity at {point.name}{where}; load the checkpoint in float32 or "
                    "bfloat16, or look for damage in its weights"
                )


@contextmanager
def recorder(
    checkpoint: Checkpoint,
    points: Sequence[HookPoint],
    positions: Positions = "last",
    *,
    stop: bool = True,
) -> Iterator[Recorder]:
    """Record hook points during forward passes.

    Interventions that are active run before the recorder, whichever was opened first: it sees
    what the model goes on with.

    Args:
        checkpoint: One with a graph.
        points: From `resolve_points`.
        positions: `last`, `all`, or positions from the end. Sliced out before anything is copied.
        stop: End each pass as soon as every point is recorded. False where logits are needed.

    Yields:
        A `Recorder`: call `forward(**inputs)`, then read `values[name]`, shape
        (batch, position, width), on the model's device and in its dtype; overwritten by the next
        pass. With `stop`, no logits are computed.
    """
    model, _ = graph_of(checkpoint)
    record = Recorder(model, points, normalize_positions(positions), stop)
    handles = [_attach(model.get_submodule(point.module), point, record) for point in points]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _attach(module: nn.Module, point: HookPoint, record: Recorder) -> Any:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.take(point, hidden_tensor(args, kwargs))

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        record.take(point, output[0] if isinstance(output, tuple) else output)

    if point.side == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def last_logits(
    checkpoint: Checkpoint, record: Recorder, inputs: Mapping[str, Any]
) -> Float[Tensor, "batch vocabulary"]:
    """Run a pass and return the logits of the last position alone, in the model's dtype.

    The position is passed as a tensor: given as a number, Gemma 4 drops all other positions from
    its later blocks, and with them what the hooks were to see.
    """
    ids: Tensor = inputs["input_ids"]
    last = torch.tensor([ids.shape[1] - 1], device=ids.device)
    output = record.forward(**inputs, logits_to_keep=last, use_cache=False)
    logits: Tensor = output.logits[:, -1]
    return logits
