"""Integers packed into 32-bit words: taking them out again, in torch.

Every format here (GPTQ, AWQ, compressed-tensors) is a little-endian bit stream along one axis;
they differ in the axis, in the order of the columns and in what is added to a zero point.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 18
"""Weights unpacked at a time: few enough to stay in a cache, and to need no memory to speak of."""


def unpack_stream(words: Int[Tensor, "rows words"], bits: int, count: int) -> Int[Tensor, "rows n"]:
    """Read `count` fields of `bits` bits from each row's little-endian bit stream.

    Args:
        words: int32 words, shape (rows, ceil(count * bits / 32)).
        bits: Width of a field, 1 to 8.
        count: Fields per row; what is left in the last word is padding.

    Returns:
        int32, shape (rows, count), each in [0, 2**bits).
    """
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        fields = (words.unsqueeze(-1) >> shifts) & mask
        return fields.flatten(1)[:, :count]
    # Fields of 3 bits straddle words; 64-bit words hold a field's both halves.
    start = torch.arange(count, device=words.device) * bits
    wide = words.to(torch.int64) & 0xFFFFFFFF
    wide = torch.cat([wide, wide.new_zeros(wide.shape[0], 1)], dim=1)
    pair = wide[:, start // 32] | (wide[:, start // 32 + 1] << 32)
    return ((pair >> (start % 32)) & mask).to(torch.int32)


def affine(
    q: Int[Tensor, "n m"], zero: Int[Tensor, "n m"], scale: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """`(q - zero) * scale` as one float32 product: the difference of integers is exact."""
    return (q - zero).to(torch.float32).mul_(scale.to(torch.float32))
