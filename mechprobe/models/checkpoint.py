"""What a loaded checkpoint is: the values that loading returns and everything above reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mechprobe.models.architectures import Architecture

Kernel = Literal["native", "dense"]
"""`native` runs the packed weights as users serve them; `dense` dequantizes them into the graph."""


@dataclass(frozen=True, slots=True)
class QuantInfo:
    """What the tensors of a checkpoint say about its quantization. Read, never assumed."""

    precision: str
    """Canonical label of what was found: FP32, BF16, FP16, AWQ-INT4, GPTQ-INT4, F16, Q4_K_M, …"""
    method: str
    """`none`, `awq`, `gptq`, `gguf` or `compressed-tensors`."""
    bits: int | None = None
    """Nominal bits of a quantized weight; None where nothing is quantized or widths are mixed."""
    group_size: int | None = None
    """Input features that share one scale; -1 is one scale for a whole row."""
    symmetric: bool | None = None
    desc_act: bool | None = None
    """GPTQ's activation ordering: groups are scattered over the input features."""
    packing: str | None = None
    """How the integers lie in the file: `gemm` (AWQ), `gptq` (v1), `gptq_v2`, `gguf`, `pack`."""
    bits_per_weight: float = 0.0
    """Stored bits over weights, scales and zeros included, of the quantized matrices alone."""
    bits_per_weight_total: float = 0.0
    """The same over every tensor of the file: embeddings, norms and head included."""
    tensor_types: Mapping[str, int] = field(default_factory=dict)
    """Storage type to number of tensors; llama.cpp's fall-backs show here."""
    notes: tuple[str, ...] = ()
    """Legitimate oddities, in words: mixed levels, unquantized layers."""
    warnings: tuple[str, ...] = ()
    """What a user must know before trusting a number: fall-back types, stale neighbours of the
    weight files, parts that no kernel here reproduces. Loading shows them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights in a transformers graph, ready to be hooked; or a GGUF that only llama.cpp runs."""

    source: str
    """The source as it was asked for."""
    path: Path
    """The local folder or `.gguf` file that was read."""
    quant: QuantInfo
    kernel: Kernel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """SHA-256 over the weight files' bytes, hex: the identity of the weights."""
    module: PreTrainedModel | None
    """The graph, in eval mode with gradients off; None for a native GGUF."""
    architecture: Architecture | None
    """The row of the architecture table; None for a native GGUF."""


def no_graph(source: str) -> str:
    """Say in one line why a native GGUF cannot be probed."""
    return (
        f"{source}: the native kernel of a GGUF is llama.cpp, which gives no activations and takes "
        "no interventions; probe it through the dense kernel, which holds the same weights"
    )
