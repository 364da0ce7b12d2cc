"""Which layers a cell shares with its baseline: equal weights, or weights that 16 bits make equal.

An error of activations behind equal layers is the rounding of the 16-bit file, not of quantization:
a ratio of such errors looks like a result and is none. Two models are never in memory together, so
each leaves digests of its layers, one of the exact numbers and one for each 16-bit rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mechprobe.activations.points import graph_of, n_layers
from mechprobe.models.architectures import backbone_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mechprobe.models.checkpoint import Checkpoint

EXACT = "exact"
ROUNDINGS = {"F16": torch.float16, "BF16": torch.bfloat16}
Digests = Mapping[str, Sequence[str]]
"""By rounding: of what comes before the blocks, then of each block."""


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """How the layers of a cell compare with its baseline's."""

    layers: tuple[str | None, ...]
    """By block: `exact`, the rounding that makes it equal (`F16`, `BF16`), or None."""
    before: str | None
    """The same of what comes before the blocks."""

    def reads_shared(self, layer: int) -> bool:
        """Whether all that a block's output is computed from is shared."""
        return None not in (self.before, *self.layers[: layer + 1])

    def differs(self, layer: int) -> bool:
        """Whether a block's own weights differ by more than rounding."""
        return self.layers[layer] is None

    def said(self, layers: Sequence[int]) -> str:
        """What these blocks and all before them are, in words."""
        kinds = {self.before, *self.layers[: max(layers) + 1]}
        rounded = [name for name in ROUNDINGS if name in kinds]
        but = f" but for the rounding of {' and '.join(rounded)} only" if rounded else ""
        return f"weights equal the baseline's{but}"


def digests(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the digests of a checkpoint's layers.

    Args:
        checkpoint: One with a graph; packed weights are taken as they lie.
    """
    model, row = graph_of(checkpoint)
    backbone = model.get_submodule(backbone_path(model, row))
    inside = [f"{row.layers}.{i}." for i in range(n_layers(checkpoint))]
    outside = (f"{row.layers}.", f"{row.final_norm}.")
    parts: list[list[tuple[str, Tensor]]] = [
        [each for each in _tensors(backbone) if not each[0].startswith(outside)],
        *([each for each in _tensors(backbone) if each[0].startswith(at)] for at in inside),
    ]
    found: dict[str, list[str]] = {name: [] for name in (EXACT, *ROUNDINGS)}
    for part in parts:
        for name, digest in zip(found, _digest(part), strict=True):
            found[name].append(digest)
    return found


def compare(cell: Digests, baseline: Digests) -> SharedWeights | None:
    """Return how layers compare; None where the two have not the same number of them."""
    if len(cell[EXACT]) != len(baseline[EXACT]):
        return None
    kinds = [
        next((name for name in cell if cell[name][i] == baseline[name][i]), None)
        for i in range(len(cell[EXACT]))
    ]
    return SharedWeights(tuple(kinds[1:]), kinds[0])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _digest(tensors: Sequence[tuple[str, Tensor]]) -> list[str]:
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(1 + len(ROUNDINGS))]
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            kinds = [tensor] * len(hashes)
        else:  # without minus zero, which is zero
            exact = tensor.detach().float() + 0.0
            kinds = [exact, *(exact.to(dtype).float() + 0.0 for dtype in ROUNDINGS.values())]
        for each, values in zip(hashes, kinds, strict=True):
            each.update(f"{name} {tuple(values.shape)}".encode())
            each.update(values.cpu().contiguous().numpy().data)
    return [each.hexdigest() for each in hashes]
