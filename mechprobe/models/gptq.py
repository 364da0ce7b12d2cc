"""GPTQ's layout, formats v1 and v2, dequantized in float32.

`qweight` is (in * bits / 32, out), packed along the input; `qzeros` is (groups, out * bits / 32),
packed along the output; `scales` is (groups, out); `g_idx` (in,) names each input feature's
group, which with activation ordering (`desc_act`) is not ascending. Format v1 stores every zero
point less one, v2 as it is. Source: `auto_gptq/nn_modules/qlinear` of AutoGPTQ 0.7 and
`gptqmodel/nn_modules/qlinear/torch.py` of GPTQModel 7.6.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.models.packed import CHUNK, affine, unpack_stream

ZeroFormat = Literal["v1", "v1-words", "v2"]
"""`v1` adds one to each field, modulo 2**bits (AutoGPTQ); `v1-words` adds it to the whole word,
carries included, which undoes exactly what GPTQModel does when it writes. The two differ only
next to a zero point of 0."""


def unpack_zeros(
    qzeros: Int[Tensor, "groups words"], bits: int, count: int, zero_format: ZeroFormat
) -> Int[Tensor, "groups out"]:
    """Zero points as they enter `(q - z) * scale`, int32, shape (groups, count)."""
    if zero_format == "v1-words" and 32 % bits == 0:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        qzeros = qzeros + torch.tensor(ones, dtype=torch.int32, device=qzeros.device)
        return unpack_stream(qzeros, bits, count)
    zeros = unpack_stream(qzeros, bits, count)
    return zeros if zero_format == "v2" else (zeros + 1) & ((1 << bits) - 1)


def dequantize_gptq(
    qweight: Int[Tensor, "words out"],
    qzeros: Int[Tensor, "groups zwords"],
    scales: Float[Tensor, "groups out"],
    g_idx: Int[Tensor, "in_"],
    bits: int,
    zero_format: ZeroFormat,
) -> Float[Tensor, "out in_"]:
    """The dense weight that the packed tensors stand for.

    Returns:
        float32, shape (out, in): `(q - z) * scale`, exactly.
    """
    rows, columns = g_idx.shape[0], scales.shape[1]
    group = g_idx.to(torch.int64)
    zeros = unpack_zeros(qzeros, bits, columns, zero_format).T
    scales = scales.T
    weight = torch.empty(columns, rows, dtype=torch.float32, device=qweight.device)
    step = max(1, CHUNK // rows)
    for begin in range(0, columns, step):
        part = slice(begin, begin + step)
        q = unpack_stream(qweight[:, part].T, bits, rows)
        weight[part] = affine(q, zeros[part][:, group], scales[part][:, group])
    return weight
