"""The packed tensors of one layer, read from the file and dequantized.

One layer at a time: the packed tensors are read and dropped again, so that a model needs little
more memory than its dense weights. Files are read and not mapped: every page of a mapped file that
was touched counts as the process's memory until the file is closed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechprobe.errors import CheckpointError
from mechprobe.models.awq import dequantize_awq, unpack_awq
from mechprobe.models.compressed import dequantize_compressed, unpack_pack
from mechprobe.models.gptq import ZeroFormat, dequantize_gptq, unpack_zeros
from mechprobe.models.quantized import PackedModule, QuantClaim
from mechprobe.models.weights import TensorEntry, read_table

Reader = Callable[[TensorEntry], Tensor]
"""Reads one tensor, on the CPU, in its stored type."""

_PICKLED: Final = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@contextmanager
def open_weights(files: Sequence[Path]) -> Iterator[tuple[dict[str, TensorEntry], Reader]]:
    """The table of all tensors and a reader for them, open for the length of the block.

    Raises:
        CheckpointError: A file is truncated or corrupt.
    """
    if files[0].suffix != ".safetensors":
        yield _read_pickles(files)
        return
    table = read_table(files)
    with ExitStack() as stack:
        handles: dict[Path, Any] = {}
        for file in files:
            try:
                handles[file] = stack.enter_context(
                    safe_open(file, framework="pt", backend="pread")
                )
            except SafetensorError as error:
                raise CheckpointError(f"{file}: unreadable: {error}; fetch it again") from error

        def read(entry: TensorEntry) -> Tensor:
            tensor = handles[entry.file].get_tensor(entry.name)
            assert isinstance(tensor, Tensor)
            return tensor

        yield table, read


def _read_pickles(files: Sequence[Path]) -> tuple[dict[str, TensorEntry], Reader]:
    state: dict[str, Tensor] = {}
    table: dict[str, TensorEntry] = {}
    for file in files:
        try:
            # Tensors and containers alone: torch refuses everything else that a pickle can name.
            part = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{file}: truncated, corrupt or unsafe: {line}") from error
        for name, tensor in part.items():
            state[name] = tensor
            dtype = _PICKLED.get(tensor.dtype, str(tensor.dtype))
            table[name] = TensorEntry(name, dtype, tuple(tensor.shape), tensor.nbytes, file)
    return table, lambda entry: state[entry.name]


def zero_format(claim: QuantClaim) -> ZeroFormat:
    """How this checkpoint's zero points are stored (GPTQ)."""
    if claim.format in ("gptq_v2", "gptq_p"):
        return "v2"
    return "v1-words" if claim.by_gptqmodel else "v1"


def group_index(module: PackedModule, read: Reader) -> Tensor:
    """Each input feature's group, shape (in,), from the file where it says so.

    Raises:
        CheckpointError: The file's index points outside the groups.
    """
    entry = module.parts.get("g_idx") or module.parts.get("weight_g_idx")
    if entry is None:
        return torch.arange(module.in_features) // module.group_size
    index = read(entry).to(torch.int64)
    groups = -(-module.in_features // module.group_size)
    if index.shape != (module.in_features,) or not 0 <= index.min() <= index.max() < groups:
        raise CheckpointError(f"{module.name}: g_idx points outside the {groups} groups")
    return index


def scales_of(module: PackedModule, read: Reader) -> Tensor:
    """Scales as stored: (groups, out) for AWQ and GPTQ, (out, groups) for compressed-tensors."""
    return read(module.parts["scales" if "scales" in module.parts else "weight_scale"])


def zeros_of(module: PackedModule, read: Reader, claim: QuantClaim) -> Tensor | None:
    """Zero points as integers, int32; None where the format has none.

    Signed for compressed-tensors (symmetric is 0), else unsigned (symmetric is 2**(bits - 1)).
    """
    if module.layout == "awq":
        return unpack_awq(read(module.parts["qzeros"]), module.bits, module.out_features)
    if module.layout == "gptq":
        words = read(module.parts["qzeros"])
        return unpack_zeros(words, module.bits, module.out_features, zero_format(claim))
    entry = module.parts.get("weight_zero_point")
    if entry is None:
        return None
    zeros = read(entry)
    if zeros.dtype == torch.int32:
        return unpack_pack(zeros.T, module.bits, module.out_features)
    return zeros.to(torch.int32)


def dense_weight(module: PackedModule, read: Reader, claim: QuantClaim) -> Tensor:
    """The weight that a packed layer stands for, float32, shape (out, in)."""
    parts: Mapping[str, TensorEntry] = module.parts
    if module.layout == "awq":
        return dequantize_awq(
            read(parts["qweight"]),
            read(parts["qzeros"]),
            read(parts["scales"]),
            module.bits,
            module.group_size,
        )
    if module.layout == "gptq":
        return dequantize_gptq(
            read(parts["qweight"]),
            read(parts["qzeros"]),
            read(parts["scales"]),
            group_index(module, read),
            module.bits,
            zero_format(claim),
        )
    zero, index = parts.get("weight_zero_point"), parts.get("weight_g_idx")
    return dequantize_compressed(
        read(parts["weight_packed" if module.layout == "pack" else "weight"]),
        read(parts["weight_scale"]),
        None if zero is None else read(zero),
        None if index is None else group_index(module, read),
        module.bits,
        module.group_size,
        (module.out_features, module.in_features),
    )
