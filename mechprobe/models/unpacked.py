"""The dense weights of a checkpoint that runs packed, read from its files one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from mechprobe.errors import CheckpointError
from mechprobe.models.quantized import packed_modules, read_claim
from mechprobe.models.unpack import dense_weight, open_weights
from mechprobe.models.weight_files import weight_files


@contextmanager
def unpacked_weights(folder: Path) -> Iterator[Callable[[str], Tensor]]:
    """Open a folder of packed weights for reading.

    Args:
        folder: Of a quantized checkpoint; safetensors alone.

    Yields:
        A function from a layer's path, as in the file, to its weight of shape (out, in), float32:
        what the dense kernel would hold.

    Raises:
        CheckpointError: The folder has no such weights, or no such layer.
    """
    claim = read_claim(folder)
    with open_weights(weight_files(folder).files) as (table, read):
        modules = packed_modules(table, claim, lambda entry: tuple(read(entry).tolist()))

        def weight(name: str) -> Tensor:
            if name not in modules:
                raise CheckpointError(
                    f"{folder}: holds no packed layer {name}; load it with kernel='dense'"
                )
            return dense_weight(modules[name], read, claim)

        yield weight
