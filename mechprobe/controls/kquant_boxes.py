"""Intervals around the values that a k-quant file stores: codes are kept as far as can be.

llama.cpp searches a k-quant's scales by weighted least squares over whole groups of weights, so
that no interval of one weight is exact (Egashira et al., arXiv 2505.23786). A weight that stays
near the value that its code stands for mostly keeps the code; how near is found by trying.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mechprobe.controls.boxes import Box
from mechprobe.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_ONES: Final = {
    "Q4_K": ((2, 4, 0), (16, 144, 0x11)),
    "Q5_K": ((2, 4, 0), (16, 48, 0), (48, 176, 0x11)),
    "Q6_K": ((0, 128, 0x11), (128, 192, 0xAA)),
}
"""What to fill bytes of a super-block with (first, last, byte), so that no minimum is left and each
code is one above zero: dequantized, it gives the steps (`block_q4_K` … of ggml-common.h)."""


def kquant_boxes(
    module: torch.nn.Module, names: Iterable[str], file: Path, share: float
) -> dict[str, Box]:
    """Return a box of each named parameter, around the values of a k-quant file.

    Args:
        module: What the file was made from.
        names: Parameters, matrices of blocks.
        file: A GGUF.
        share: Of a step, from a code's value to the ends of the box; the weight itself always
            lies inside.

    Raises:
        CheckpointError: A matrix is stored as another type than `Q4_K`, `Q5_K` and `Q6_K`.
    """
    import torch

    from mechprobe.controls.world_model import load_model

    codes = file.with_name(f"{file.stem}-steps.gguf")
    _write_steps(file, codes)
    values, steps = (load_model(str(each))[0] for each in (file, codes))
    found = {}
    for name in names:
        weight = module.get_parameter(name).detach().half().float()
        value, reach = values.get_parameter(name), share * steps.get_parameter(name).abs()
        low, high = torch.minimum(value - reach, weight), torch.maximum(value + reach, weight)
        found[name] = Box(low.half(), high.half())
    return found


def _write_steps(file: Path, out: Path) -> None:
    """Copy a file, each code of a block's matrix replaced by one step above zero."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    from mechprobe.models.gguf_file import read_gguf

    shutil.copyfile(file, out)
    with out.open("r+b") as target:
        gguf = read_gguf(file)
        for name, tensor in gguf.tensors.items():
            if not name.startswith("blk.") or len(tensor.shape) < 2:
                continue
            if tensor.type not in _ONES:
                raise CheckpointError(
                    f"{file}: {name} is stored as {tensor.type}; steps are known of "
                    f"{', '.join(_ONES)}"
                )
            _, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
            blocks = np.array(gguf.raw(tensor)).reshape(-1, size)
            for first, last, byte in _ONES[tensor.type]:
                blocks[:, first:last] = byte
            target.seek(tensor.offset)
            target.write(blocks.tobytes())
