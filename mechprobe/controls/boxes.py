"""Boxes: for each weight, the interval in which llama.cpp's quantizer keeps codes and scales.

Training inside the boxes changes a 16-bit model and not one bit of its quantized form (Egashira et
al., arXiv 2405.18137 and 2505.23786). Q4_0, Q4_1 and Q8_0 round each block of 32 weights to a grid
that its extremes alone define, so that the intervals are exact where those stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS: Final = ("Q4_0", "Q4_1", "Q8_0")
BLOCK: Final = 32
MARGIN: Final = 1e-3
"""Of a step, between a box and the next code: far above what float32 arithmetic of the quantizer
can be off (4e-5 of a step at Q8_0), whatever the order of its operations."""


@dataclass(frozen=True, slots=True)
class Box:
    """Bounds of each weight of a matrix, both of them float16 values in the matrix's shape.

    A value between them stays there when it is rounded to float16.
    """

    low: Float[Tensor, "rows columns"]
    high: Float[Tensor, "rows columns"]

    def project_(self, weight: Float[Tensor, "rows columns"]) -> None:
        """Clamp a float32 weight into the box, in place."""
        weight.clamp_(self.low.to(weight.dtype), self.high.to(weight.dtype))

    @property
    def free(self) -> float:
        """Share of the weights that can move."""
        return float((self.low < self.high).double().mean())


def box(weight: Float[Tensor, "rows columns"], level: str) -> Box:
    """Return the box of a matrix at a GGUF level.

    Blocks run along the columns, so that llama.cpp's reordering of rows changes nothing. Weights
    that define a block's scale or minimum, and weights within `MARGIN` of the next code, are fixed.

    Args:
        weight: As the 16-bit checkpoint holds it; rounded to float16 where it is not.
        level: One of `LEVELS`.

    Raises:
        CheckpointError: The level has no exact boxes, or the columns are no multiple of 32.
    """
    import torch

    if level not in LEVELS:
        raise CheckpointError(f"level {level!r} has no exact boxes; choose {', '.join(LEVELS)}")
    if weight.shape[-1] % BLOCK:
        raise CheckpointError(
            f"{weight.shape[-1]} columns are no multiple of {BLOCK}; llama.cpp stores the matrix "
            f"as another type than {level}"
        )
    half = weight.detach().to(device="cpu", dtype=torch.float16).numpy()
    low, high = _bounds(half.reshape(-1, BLOCK), level)
    return Box(*(torch.from_numpy(each.reshape(half.shape)) for each in (low, high)))


def _bounds(half: Array, level: str) -> tuple[Array, Array]:
    """Float16 bounds of blocks, shape (block, 32)."""
    blocks = half.astype(np.float64)
    zero, step, first, last = _grid(blocks, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (blocks - zero) / step
    code = np.clip(np.rint(place), first, last)
    # the outermost codes reach as far as the block's extremes, which bound every box anyway
    below = np.where(code == first, first - 1.0, code - 0.5 + MARGIN)
    above = np.where(code == last, last + 1.0, code + 0.5 - MARGIN)
    ends = zero + step * below, zero + step * above
    least, most = _extremes(half, level)
    inner = np.nextafter(least, np.float16(np.inf)), np.nextafter(most, np.float16(-np.inf))
    low = np.maximum(_round_up(np.minimum(*ends)), inner[0])
    high = np.minimum(-_round_up(-np.maximum(*ends)), inner[1])
    free = (half > least) & (half < most) & (below <= place) & (place <= above) & (low < high)
    return np.where(free, low, half), np.where(free, high, half)


def _grid(blocks: Array, level: str) -> tuple[Array | float, Array, int, int]:
    """What code 0 stands for, what one code adds (shape (block, 1)), first and last code.

    As `quantize_row_q4_0_ref`, `quantize_row_q4_1_ref` and `quantize_row_q8_0_ref` of
    ggml-quants.c have them.
    """
    if level == "Q4_1":
        least = blocks.min(axis=1, keepdims=True)
        return least, (blocks.max(axis=1, keepdims=True) - least) / 15, 0, 15
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    signed = np.take_along_axis(blocks, largest, axis=1)
    return (0.0, signed / -8, -8, 7) if level == "Q4_0" else (0.0, np.abs(signed) / 127, -127, 127)


def _extremes(half: Array, level: str) -> tuple[Array, Array]:
    """Values at which, and beyond which, a weight defines its block; shape (block, 1)."""
    if level == "Q4_1":
        return half.min(axis=1, keepdims=True), half.max(axis=1, keepdims=True)
    most = np.abs(half).max(axis=1, keepdims=True)
    return -most, most


def _round_up(values: Array) -> Array:
    """Return the least float16 values that are no smaller."""
    near = values.astype(np.float16)
    return np.where(near < values, np.nextafter(near, np.float16(np.inf)), near)


def boxes(module: torch.nn.Module, names: Iterable[str], level: str) -> dict[str, Box]:
    """Return the box of each named parameter of a model."""
    return {name: box(module.get_parameter(name), level) for name in names}
