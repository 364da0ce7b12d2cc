"""compressed-tensors (what vLLM's llm-compressor writes), dequantized in float32.

`pack-quantized`: `weight_packed` is (out, in * bits / 32), packed along the input with
2**(bits - 1) added to each signed integer; `weight_scale` is (out, groups); the zero points of an
asymmetric scheme are packed along the output with the same offset. `int-quantized`: `weight` is
int8. Source: `compressed_tensors/compressors` 0.20.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.models.packed import CHUNK, affine, unpack_stream


def unpack_pack(words: Int[Tensor, "rows words"], bits: int, count: int) -> Int[Tensor, "rows n"]:
    """Signed integers of a `pack-quantized` tensor, int32, shape (rows, count)."""
    return unpack_stream(words, bits, count) - (1 << (bits - 1))


def dequantize_compressed(
    packed: Int[Tensor, "out words"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "..."] | None,
    g_idx: Int[Tensor, "in_"] | None,
    bits: int,
    group_size: int,
    shape: tuple[int, int],
) -> Float[Tensor, "out in_"]:
    """The dense weight that the packed tensors stand for.

    Args:
        packed: `weight_packed`, or an int8 `weight` of the full shape.
        scale: Shape (out, groups), or (1, 1) for one scale in all.
        zero_point: Packed along the output (int32) or plain (int8); None is symmetric.
        g_idx: Each input feature's group; None means groups of equal size in order.
        bits: Width of a packed integer.
        group_size: Input features that share one scale.
        shape: (out, in) of the weight.

    Returns:
        float32, shape (out, in): `(q - z) * scale`, exactly.
    """
    rows, columns = shape
    if g_idx is None:
        group = torch.arange(columns, device=packed.device) // group_size
    else:
        group = g_idx.to(torch.int64)
    scale = scale.expand(rows, -1)
    if zero_point is None:
        zeros = torch.zeros_like(scale, dtype=torch.int32)
    elif zero_point.dtype == torch.int32:
        zeros = unpack_pack(zero_point.T, bits, rows).T
    else:
        zeros = zero_point.to(torch.int32).expand(rows, -1)
    weight = torch.empty(rows, columns, dtype=torch.float32, device=packed.device)
    step = max(1, CHUNK // columns)
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        words = packed[part]
        q = (
            words.to(torch.int32)
            if packed.dtype == torch.int8
            else unpack_pack(words, bits, columns)
        )
        weight[part] = affine(q, zeros[part][:, group], scale[part][:, group])
    return weight
