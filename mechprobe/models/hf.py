"""Weights become an ordinary transformers graph: plain ones, and packed ones dequantized."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.models.foreign import foreign_errors, require_size
from mechprobe.models.quantized import PackedModule, QuantClaim
from mechprobe.models.unpack import Reader, dense_weight
from mechprobe.models.verify import check_keys
from mechprobe.models.weights import TensorEntry, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

BUFFERS: Final = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias", ".attention.bias")
"""Buffers that older transformers versions stored and the graph computes itself."""


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The model's configuration, its quantization left out.

    Raises:
        ArchitectureError: transformers does not know the model type.
        CheckpointError: The architecture needs code from the repository, or the file is broken.
    """
    from transformers import AutoConfig

    raw = read_json(folder / "config.json")

    def refuse(said: str) -> CheckpointError:
        if raw.get("auto_map") and not trust_remote_code:
            return CheckpointError(
                f"{folder}: the architecture is Python code in the repository; read it, then pass "
                "trust_remote_code=True to mechprobe.load"
            )
        if "model_type" not in raw or "does not recognize" in said:
            return ArchitectureError(
                f"{folder}: model type {raw.get('model_type')!r} is unknown to transformers"
            )
        return CheckpointError(f"{folder / 'config.json'}: {said}")

    with foreign_errors(refuse):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    for name in ("quantization_config", "compression_config"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def load_plain(
    folder: Path,
    table: Mapping[str, TensorEntry],
    config: PreTrainedConfig,
    read: Reader,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load an unquantized folder through transformers' own loader, tensor by tensor.

    transformers would map the files, and their pages stay resident until the last tensor is read:
    half a model more for float16 weights in a float32 graph.

    Raises:
        CheckpointError: Keys or shapes do not fit the configuration.
    """
    state: dict[str, Any] = {name: _Unread(entry, read) for name, entry in table.items()}
    held = sum(entry.size for entry in table.values())
    graph = _graph_of_size(folder, config, held, trust_remote_code)
    with quiet_transformers(), _load_errors(str(folder)):
        model, info = type(graph).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        add_generation_config(model, folder)
    _check(str(folder), info, set())
    return _finish(model, device)


def load_dense(
    folder: Path,
    table: Mapping[str, TensorEntry],
    modules: Mapping[str, PackedModule],
    claim: QuantClaim,
    config: PreTrainedConfig,
    read: Reader,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Dequantize packed weights into the ordinary graph of the configuration.

    The tensors go through transformers' own loader, which knows the renamings between files and
    graph (and fuses experts); it takes them as they are, without a copy.

    Raises:
        CheckpointError: Keys or shapes do not fit the configuration.
    """
    if "lm_head" in modules and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # a packed head is no longer the embedding
    packed = {entry.name for module in modules.values() for entry in module.parts.values()}
    state: dict[str, Tensor] = {}
    empty_biases: set[str] = set()
    for name, entry in table.items():
        if name not in packed:
            tensor = read(entry)
            state[name] = tensor.to(device, dtype) if tensor.is_floating_point() else tensor
            if name.endswith(".bias") and name.removesuffix(".bias") in modules:
                # AutoGPTQ writes a bias of zeros for layers that have none.
                empty_biases |= {name} if not bool(tensor.any()) else set()
    held = sum(module.in_features * module.out_features for module in modules.values())
    held += sum(entry.size for entry in table.values())
    graph = _graph_of_size(folder, config, held, trust_remote_code)
    for name, module in modules.items():
        weight = dense_weight(module, read, claim)
        weight = weight.T.contiguous() if _is_transposed(graph, name) else weight
        state[f"{name}.weight"] = weight.to(device, dtype)
    with quiet_transformers(), _load_errors(str(folder)):
        model, info = type(graph).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        add_generation_config(model, folder)
    _check(str(folder), info, empty_biases)
    return _finish(model, device)


class _Unread:
    """A tensor that transformers' loader reads when its turn comes, as it does with slices."""

    def __init__(self, entry: TensorEntry, read: Reader) -> None:
        self._entry, self._read = entry, read

    def __getitem__(self, _: object) -> Tensor:
        return self._read(self._entry)


def add_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Let a graph end its answers where the folder says, whichever kernel runs it."""
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            given = getattr(config, name, None)
            ids = given if isinstance(given, list | tuple) else [given]
            if not all(one is None or (type(one) is int and one >= -1) for one in ids):
                raise TypeError(f"{name}: {given!r} is no id of a token")


def empty_graph(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The graph of a configuration, its parameters without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _graph_of_size(
    folder: Path, config: PreTrainedConfig, held: int, trust_remote_code: bool
) -> PreTrainedModel:
    """The empty graph of a folder that holds so many numbers; see `require_size`."""
    with _load_errors(str(folder)):
        graph = empty_graph(config, trust_remote_code)
    require_size(graph, held, str(folder))
    return graph


def _is_transposed(graph: PreTrainedModel, name: str) -> bool:
    """Whether this layer keeps its weight as (in, out): GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    for path in (name, f"{graph.base_model_prefix}.{name}"):
        try:
            return isinstance(graph.get_submodule(path), Conv1D)
        except AttributeError:
            continue
    return False


def _check(what: str, info: Mapping[str, Any], ignored: set[str]) -> None:
    unexpected = [
        key for key in info["unexpected_keys"] if key not in ignored and not key.endswith(BUFFERS)
    ]
    mismatched = [str(key[0]) for key in info["mismatched_keys"]]
    check_keys(what, sorted(info["missing_keys"]), unexpected, mismatched)


def _finish(model: Any, device: str) -> PreTrainedModel:
    model.to(device).eval().requires_grad_(False)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its report of missing keys is ours to give, and its progress bars are in the way."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_errors(what: str) -> AbstractContextManager[None]:
    return foreign_errors(
        lambda said: CheckpointError(f"{what}: transformers cannot build it: {said}")
    )
