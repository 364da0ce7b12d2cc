"""What a checkpoint is by config.json, safetensors and GGUF headers: no torch, no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechprobe.errors import CheckpointError, SpecError
from mechprobe.models.architectures import row_of
from mechprobe.models.checkpoint import QuantInfo, no_graph
from mechprobe.models.foreign import require_parts
from mechprobe.models.gguf_config import reject_unsupported
from mechprobe.models.gguf_file import GgufFile, read_gguf
from mechprobe.models.gguf_info import quant_info
from mechprobe.models.gguf_names import architecture_of_file
from mechprobe.models.precision import describe
from mechprobe.models.quantized import packed_modules, read_claim
from mechprobe.models.source import Source
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import TensorEntry, read_json, read_table
from mechprobe.preflight.same_model import Shape


@dataclass(frozen=True, slots=True)
class Header:
    """The facts of one checkpoint."""

    source: Source
    quant: QuantInfo
    shape: Shape
    gguf: GgufFile | None = None
    """The header of a GGUF file."""


def read_header(source: Source) -> Header:
    """Read what a checkpoint on this disk is.

    Raises:
        CheckpointError: Truncated, corrupt, incomplete or unsupported.
        PrecisionError: Its tensors contradict its configuration or label.
        ArchitectureError: Nothing here runs a folder of this architecture.
    """
    return _of_gguf(source) if source.kind == "gguf" else _of_folder(source)


def _of_gguf(source: Source) -> Header:
    file = read_gguf(source.path)
    embedding = file.tensors.get("token_embd.weight")
    return Header(
        source,
        quant_info(file),
        Shape(
            source.text,
            file.architecture,
            file.get("block_count"),
            file.get("embedding_length"),
            embedding.shape[0] if embedding else None,
            gguf=True,
        ),
        file,
    )


def _of_folder(source: Source) -> Header:
    folder = source.path
    config = read_json(folder / "config.json")
    row_of(str(config.get("model_type")))
    claim, table = read_claim(folder), read_table(weight_files(folder).files)
    require_parts(config, table, str(folder))
    try:
        quant = describe(table, packed_modules(table, claim, _stored_shape), claim)
    except CheckpointError as error:
        raise type(error)(f"{folder}: {error}") from error
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else config
    return Header(
        source,
        quant,
        Shape(
            source.text,
            str(text.get("model_type")),
            _count(text, "num_hidden_layers", "n_layer", "n_layers"),
            _count(text, "hidden_size", "n_embd", "d_model"),
            _count(text, "vocab_size"),
        ),
    )


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if type(config.get(name)) is int), None)


def _stored_shape(entry: TensorEntry) -> tuple[int, ...]:
    """The values of a `weight_shape` tensor of compressed-tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(entry.file, framework="numpy") as stored:
            return tuple(stored.get_tensor(entry.name).tolist())
    except SafetensorError as error:
        raise CheckpointError(f"{entry.file}: unreadable: {error}; fetch it again") from error


def require_layer(header: Header, layer: int) -> None:
    """Refuse a layer that a model does not have.

    Raises:
        SpecError: It has fewer.
    """
    layers = header.shape.layers
    if layers is not None and not 0 <= layer < layers:
        raise SpecError(f"layer {layer}: {header.source.text} has layers 0 to {layers - 1}")


def require_hooks(header: Header) -> None:
    """Refuse to look into the native kernel of a GGUF file.

    Raises:
        CheckpointError: llama.cpp runs it.
    """
    if header.gguf is not None:
        raise CheckpointError(no_graph(header.source.text))


def require_dense(header: Header) -> None:
    """Refuse a GGUF file that cannot be dequantized into a graph; a folder always has one.

    Raises:
        ArchitectureError: Its architecture, or a variant of it, has none.
    """
    if header.gguf is not None:
        row = architecture_of_file(header.source.path, header.shape.architecture)
        reject_unsupported(header.gguf, row)
