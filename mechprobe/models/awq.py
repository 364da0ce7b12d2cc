"""AWQ's GEMM layout, as AutoAWQ and GPTQModel write it, dequantized in float32.

`qweight` is (in, out * bits / 32) and `qzeros` (groups, out * bits / 32), both packed along the
output; `scales` is (groups, out). At 4 bits the eight columns of a word are interleaved:
nibble i holds column (0, 2, 4, 6, 1, 3, 5, 7)[i]. Other widths, which only GPTQModel writes, are
stored in order. Source: `awq/utils/packing_utils.py` and `awq/modules/linear/gemm.py` of
AutoAWQ 0.2.9; `gptqmodel/quantization/awq/utils/packing_utils.py` of GPTQModel 7.6.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.models.packed import CHUNK, affine, unpack_stream

_COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLE_OF_COLUMN = sorted(range(8), key=_COLUMN_OF_NIBBLE.__getitem__)


def unpack_awq(words: Int[Tensor, "rows words"], bits: int, count: int) -> Int[Tensor, "rows n"]:
    """The integers of an AWQ tensor in the order of the columns, int32, shape (rows, count)."""
    fields = unpack_stream(words, bits, count)
    if bits != 4:
        return fields
    return fields.view(len(words), -1, 8)[:, :, _NIBBLE_OF_COLUMN].flatten(1)


def dequantize_awq(
    qweight: Int[Tensor, "in_ words"],
    qzeros: Int[Tensor, "groups words"],
    scales: Float[Tensor, "groups out"],
    bits: int,
    group_size: int,
) -> Float[Tensor, "out in_"]:
    """The dense weight that the packed tensors stand for.

    Returns:
        float32, shape (out, in): `(q - z) * scale`, exactly.
    """
    rows, columns = qweight.shape[0], scales.shape[1]
    group = torch.arange(rows, device=qweight.device) // group_size
    zeros = unpack_awq(qzeros, bits, columns)
    weight = torch.empty(columns, rows, dtype=torch.float32, device=qweight.device)
    step = max(1, CHUNK // columns)
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        q = unpack_awq(qweight[part], bits, columns)
        weight[:, part] = affine(q, zeros[group[part]], scales[group[part]]).T
    return weight
