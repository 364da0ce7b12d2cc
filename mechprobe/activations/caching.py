"""`run_with_cache`: prompts in, logits and activations out, all in memory.

For more prompts than fit, stream them into a store (`mechprobe.activations.capture`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.activations.edits import Intervention
from mechprobe.activations.forward import Positions, normalize_positions
from mechprobe.activations.points import resolve_points
from mechprobe.activations.restart import Restart
from mechprobe.activations.streaming import stream
from mechprobe.errors import PromptFileError

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts


class ActivationCache(Mapping[str, Tensor]):
    """Hook name to activations, shape (prompt, position, width), on the CPU, in the model's dtype.

    With `positions="all"` the positions are those of the longest prompt, aligned at the end; where
    a shorter prompt has no token stands NaN, so that nothing is averaged over padding unnoticed.
    """

    def __init__(self, values: Mapping[str, Tensor], positions: tuple[int, ...]) -> None:
        self._values = dict(values)
        self.positions = positions
        """What the position axis holds, counted from the end of each prompt."""

    def __getitem__(self, name: str) -> Tensor:
        """Activations of one hook point."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Hook names, in order of computation."""
        return iter(self._values)

    def __len__(self) -> int:
        """Number of hook points."""
        return len(self._values)

    def __repr__(self) -> str:
        """Names and shapes."""
        rows = [f"{name}: {tuple(value.shape)}" for name, value in self._values.items()]
        return "\n  ".join([f"ActivationCache({len(rows)} points)", *rows])


def run_with_cache(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    names: str | Sequence[str],
    *,
    positions: Positions = "last",
    batch_size: int = 16,
    interventions: Sequence[Intervention] = (),
) -> tuple[Float[Tensor, "prompt vocabulary"], ActivationCache]:
    """One forward pass over the prompts, recorded.

    Args:
        checkpoint: One with a graph.
        prompts: Any lengths; they are padded on the left with explicit position ids.
        names: Hook names, globs, or raw module paths with `:in` / `:out`.
        positions: `last`, `all`, or positions from the end such as `[-3, -2, -1]`.
        batch_size: Prompts in memory at once.
        interventions: Active during the pass, after any that are active already; what is recorded
            is what they leave.

    Returns:
        Logits after the last token, float32 on the CPU, and the activations; both in the order of
        the prompts.

    Raises:
        HookNameError: A name is unknown, or a position lies before a prompt's start.
        NumericsError: NaN or infinity; the message names the place.
        PromptFileError: There are no prompts.
        SpecError: An intervention does not fit.
    """
    _check_any(prompts)
    points = resolve_points(checkpoint, names)
    places = normalize_positions(positions)
    if places is None:
        places = tuple(range(-max(map(len, prompts.ids)), 0))
        wanted: Positions = "all"
    else:
        wanted = places
    values: dict[str, Tensor] = {}
    logits: Tensor | None = None
    for found in stream(
        checkpoint,
        prompts,
        points,
        wanted,
        batch_size=batch_size,
        logits=True,
        interventions=interventions,
    ):
        rows = list(found.indices)
        if found.logits is not None:
            logits = _place(logits, rows, found.logits.float(), (len(prompts),))
        for name, value in found.values.items():
            if wanted == "all":
                _blank_padding(value, [len(prompts.ids[row]) for row in rows])
            shape = (len(prompts), len(places))
            values[name] = _place(values.get(name), rows, value, shape)
    assert logits is not None
    return logits, ActivationCache({point.name: values[point.name] for point in points}, places)


def next_token_logits(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    *,
    batch_size: int = 16,
    interventions: Sequence[Intervention] = (),
    restart: Restart | None = None,
) -> Float[Tensor, "prompt vocabulary"]:
    """Logits after each prompt's last token, float32 on the CPU, in the order of the prompts.

    Args:
        checkpoint: One with a graph.
        prompts: Any lengths.
        batch_size: Prompts in memory at once.
        interventions: Active during the pass, after any that are active already.
        restart: Where passes without `interventions` are kept, and those with them begin.

    Raises:
        NumericsError: NaN or infinity in the logits.
        PromptFileError: There are no prompts.
        SpecError: An intervention does not fit.
    """
    _check_any(prompts)
    logits: Tensor | None = None
    for found in stream(
        checkpoint,
        prompts,
        (),
        batch_size=batch_size,
        logits=True,
        interventions=interventions,
        restart=restart,
    ):
        if found.logits is not None:
            rows = list(found.indices)
            logits = _place(logits, rows, found.logits.float(), (len(prompts),))
    assert logits is not None
    return logits


def _check_any(prompts: EncodedPrompts) -> None:
    if not prompts.ids:
        raise PromptFileError("no prompts were given; at least one is needed")


def _blank_padding(value: Tensor, lengths: Sequence[int]) -> None:
    for row, length in enumerate(lengths):
        value[row, : value.shape[1] - length] = float("nan")


def _place(whole: Tensor | None, rows: list[int], part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Put a batch's rows where they belong; positions are aligned at the end."""
    if whole is None:
        whole = torch.full((*shape, part.shape[-1]), float("nan"), dtype=part.dtype)
    part = part.cpu()
    if part.dim() == 3:
        whole[rows, -part.shape[1] :] = part
    else:
        whole[rows] = part
    return whole
