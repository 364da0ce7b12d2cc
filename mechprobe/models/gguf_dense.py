"""A GGUF file, dequantized into the ordinary transformers graph.

Every quantized format of a model then runs in one graph and differs in weights alone, so every
cell can be probed. Tensors are read one at a time from the mapped file; the peak is the dense
model plus its largest tensor in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.errors import CheckpointError
from mechprobe.models.foreign import foreign_errors, require_size
from mechprobe.models.gguf_config import config_from_metadata
from mechprobe.models.gguf_file import GgufFile, GgufTensor, read_gguf
from mechprobe.models.gguf_info import quant_info, read_gguf_info
from mechprobe.models.gguf_names import GgufArchitecture, Heads, architecture_of_file

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "dequantize",
    "load_gguf_dense",
    "read_gguf_info",
]

Array = np.ndarray[Any, np.dtype[np.float32]]


def dequantize(file: GgufFile, tensor: GgufTensor) -> Array:
    """One tensor in float32, in torch's shape.

    Raises:
        CheckpointError: The `gguf` package cannot dequantize this storage type.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as unpack

    kind = GGMLQuantizationType[tensor.type]
    raw = file.raw(tensor)
    try:
        values = unpack(raw.reshape(-1, raw.size // max(1, _rows(tensor))), kind)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{file.path}: tensor {tensor.name} is stored as {tensor.type}, which the `gguf` "
            "package cannot dequantize"
        ) from error
    return np.array(values, dtype=np.float32).reshape(tensor.shape)


def _rows(tensor: GgufTensor) -> int:
    return int(np.prod(tensor.shape[:-1], dtype=np.int64))


def _empty_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The graph with parameters on the meta device and buffers (rope tables) really computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _require_tensors(file: GgufFile) -> None:
    """Refuse metadata of more layers than the file has tensors for, before a graph is built."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: no tensor token_embd.weight; convert the model again")
    layers, names = int(file.require("block_count")), file.tensors
    if not any(name.startswith(f"blk.{layers - 1}.") for name in names):
        raise CheckpointError(
            f"{file.path}: {file.architecture}.block_count is {layers} and the tensors are of "
            "another number of layers; convert the model again"
        )


def _heads(config: PretrainedConfig) -> Heads:
    query = int(config.num_attention_heads)
    return Heads(query, int(getattr(config, "num_key_value_heads", None) or query))


_SPLIT = ("q_proj", "k_proj", "v_proj")


class _Source:
    """Parameters by their transformers name, one at a time, out of a GGUF file."""

    def __init__(
        self, file: GgufFile, architecture: GgufArchitecture, config: PretrainedConfig
    ) -> None:
        self.file, self.architecture, self.heads = file, architecture, _heads(config)
        self.layers = int(config.num_hidden_layers)
        self.name_of = architecture.name_map(self.layers)
        self.used: set[str] = set(architecture.constants)

    def read(self, parameter: str, shape: tuple[int, ...]) -> Array:
        name = self.name_of(parameter)
        if name is not None and name in self.file.tensors:
            array = self._take(name)
        else:
            array = self._part_of_fused(parameter, name)
        if array.shape != shape:
            raise CheckpointError(
                f"{self.file.path}: tensor {name} has shape {array.shape} and {parameter} needs "
                f"{shape}; the metadata do not fit the tensors"
            )
        return array

    def _take(self, name: str) -> Array:
        self.used.add(name)
        array = dequantize(self.file, self.file.tensors[name])
        return self.architecture.convert(name, array, self.heads, "from_gguf")

    def _part_of_fused(self, parameter: str, name: str | None) -> Array:
        """Rows of a fused query-key-value tensor: how older converters wrote Phi-2."""
        fused = None if name is None else _fused_name(name)
        part = next((i for i, kind in enumerate(_SPLIT) if kind in parameter), None)
        if fused is None or fused not in self.file.tensors or part is None:
            raise CheckpointError(
                f"{self.file.path}: no tensor for {parameter} ({name or 'no GGUF name'}); the "
                "file is incomplete or of a newer layout"
            )
        rows = self._take(fused)
        width = rows.shape[0] // (self.heads.query + 2 * self.heads.key_value)
        sizes = [self.heads.query, self.heads.key_value, self.heads.key_value]
        return np.split(rows, np.cumsum([n * width for n in sizes])[:-1])[part]


def _fused_name(name: str) -> str | None:
    for kind in ("attn_q.", "attn_k.", "attn_v."):
        if kind in name:
            return name.replace(kind, "attn_qkv.")
    return None


def _assign(model: PreTrainedModel, name: str, value: torch.Tensor) -> None:
    import torch

    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, torch.nn.Parameter(value, requires_grad=False))


def _apply_rope_factors(model: PreTrainedModel, factors: Array) -> None:
    """Divide the rotary frequencies where no `rope_parameters` express the factors."""
    import torch

    rotary = model.get_submodule("model.rotary_emb")
    divisor = torch.from_numpy(factors)
    for name in ("inv_freq", "original_inv_freq"):
        rotary.register_buffer(name, rotary.get_buffer(name) / divisor, persistent=False)


def load_gguf_dense(path: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Dequantize a GGUF file into a transformers model, in eval mode with gradients off.

    Args:
        path: A `.gguf` file of an architecture in `gguf_names.ARCHITECTURES`.
        dtype: Of the parameters; float32 keeps the dequantized values exactly.
        device: Where the model is put, tensor by tensor.

    Raises:
        CheckpointError: Truncated, incomplete, or of an unknown storage type.
        PrecisionError: Mislabelled.
        ArchitectureError: An architecture or variant that cannot be read densely.
    """
    import torch

    file = read_gguf(path)
    quant_info(file)
    architecture = architecture_of_file(path, file.architecture)
    factors = {
        n: dequantize(file, file.tensors[n]) for n in architecture.constants_in(file.tensors)
    }
    _require_tensors(file)

    def refuse(said: str) -> CheckpointError:
        return CheckpointError(f"{path}: its metadata give no model that can be built: {said}")

    with foreign_errors(refuse):
        config = config_from_metadata(file, architecture, factors)
        model = _empty_model(config, dtype)
    require_size(model, sum(tensor.size for tensor in file.tensors.values()), str(path))
    source = _Source(file, architecture, config)
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in tied:
            continue
        value = torch.from_numpy(source.read(name, tuple(parameter.shape)))
        _assign(model, name, value.to(device=device, dtype=dtype))
    model.tie_weights()
    unread = sorted(set(file.tensors) - source.used)
    if unread:
        raise CheckpointError(
            f"{path}: {len(unread)} tensors have no place in the {architecture.name} graph, the "
            f"first {unread[0]}; the file is of a newer layout"
        )
    frequencies = factors.get("rope_freqs.weight")
    if frequencies is not None and config.rope_parameters["rope_type"] == "default":
        _apply_rope_factors(model, frequencies)
    return model.to(device).eval().requires_grad_(False)
