"""A folder's tensors as llama.cpp names, lays out and stores them in an F16 file.

The two ends of a model need a rule of their own: embedding and output matrix are tied or not, and
stored once or twice, under either name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.models.gguf_names import GgufArchitecture, Heads
from mechprobe.models.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Array = np.ndarray[Any, np.dtype[Any]]
_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
_ALWAYS: Final = frozenset({"phi2", "olmo2", "gptneox"})
"""llama.cpp wants an output matrix from these, also where it is the embedding."""
_NEVER: Final = frozenset({"gemma2"})
"""llama.cpp takes the embedding for the output matrix of these, whatever else there is."""


def _weights(folder: Path) -> Iterator[tuple[str, Array]]:
    """Every tensor of a folder's weights, in float32."""
    import torch

    from mechprobe.models.unpack import open_weights

    with open_weights(weight_files(folder).files) as (table, read):
        for name, entry in table.items():
            yield name, read(entry).to(torch.float32).numpy()


def _as_stored(name: str, array: Array, folder: Path) -> Array:
    """Matrices in float16, everything else in float32, as llama.cpp's converter stores them."""
    if array.ndim < 2:
        return array.astype(np.float32)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(
            f"{folder}: {name} has values beyond float16's range or not finite; an F16 GGUF "
            "cannot hold this model"
        )
    return half


def add_tensors(
    writer: Any, folder: Path, config: PretrainedConfig, architecture: GgufArchitecture
) -> None:
    """Add every tensor that the model needs to a `GGUFWriter`, one at a time.

    Raises:
        CheckpointError: A tensor is missing, has no place, or is beyond float16's range.
        ArchitectureError: llama.cpp's graph has no place for an output matrix of its own.
    """
    from mechprobe.models.hf import BUFFERS

    known = architecture.name_map(int(config.num_hidden_layers))

    def name_of(parameter: str) -> str | None:
        # Gemma 2 has no output matrix in llama.cpp's table; a folder may hold one all the same.
        return known(parameter) or (_HEAD if parameter == "lm_head.weight" else None)

    query = int(config.num_attention_heads)
    heads = Heads(query, int(getattr(config, "num_key_value_heads", None) or query))
    places = {name for p in _parameters(config) if (name := name_of(p)) is not None}
    written: set[str] = set()
    ends: dict[str, Array] = {}
    for parameter, array in _weights(folder):
        name = name_of(parameter)
        if name is None or name not in places:
            if parameter.endswith(BUFFERS):
                continue
            raise CheckpointError(f"{folder}: llama.cpp has no place for the tensor {parameter}")
        if name in written:
            raise CheckpointError(f"{folder}: {parameter} is there twice under different names")
        written.add(name)
        converted = architecture.convert(name, array, heads, "to_gguf")
        stored = np.ascontiguousarray(_as_stored(name, converted, folder))
        if name in (_EMBEDDING, _HEAD):
            ends[name] = stored
        else:
            writer.add_tensor(name, stored)
    for name, stored in _embedding_and_head(ends, folder, config, architecture).items():
        writer.add_tensor(name, stored)
        written.add(name)
    if lost := sorted(places - written - {_HEAD}):
        raise CheckpointError(
            f"{folder}: {len(lost)} tensors that the model needs are missing, the first {lost[0]}"
        )


def _parameters(config: PretrainedConfig) -> list[str]:
    from mechprobe.models.hf import empty_graph

    graph = empty_graph(config, trust_remote_code=False)
    return [name for name, _ in graph.named_parameters(remove_duplicate=False)]


def _embedding_and_head(
    stored: Mapping[str, Array],
    folder: Path,
    config: PretrainedConfig,
    architecture: GgufArchitecture,
) -> dict[str, Array]:
    """Arrange both as transformers' `tie_weights` leaves them, in the form that llama.cpp reads.

    Tied weights may be stored under either name. Two that are stored and differ are not tied,
    whatever the configuration says.

    Args:
        stored: Those that the folder holds, by GGUF name.
        folder: For messages.
        config: Of the folder.
        architecture: What is written.

    Raises:
        CheckpointError: One is missing and nothing is tied to it.
        ArchitectureError: llama.cpp's graph has no place for an output matrix of its own.
    """
    found, tied = dict(stored), bool(config.tie_word_embeddings)
    for one, other in ((_EMBEDDING, _HEAD), (_HEAD, _EMBEDDING)):
        if one in found:
            continue
        if not tied or other not in found:
            what = "the embedding" if one is _EMBEDDING else "the output matrix"
            raise CheckpointError(
                f"{folder}: {what} is not among the weights and tie_word_embeddings is "
                f"{str(tied).lower()}; transformers would draw it at random"
            )
        found[one] = found[other]
    same = np.array_equal(found[_EMBEDDING], found[_HEAD])
    if architecture.name in _NEVER:
        if not same:
            raise ArchitectureError(
                f"{folder}: tie_word_embeddings: the output matrix is not the embedding, and "
                f"llama.cpp's {architecture.name} graph has no other; a GGUF would be another model"
            )
        del found[_HEAD]
    elif same and tied and architecture.name not in _ALWAYS:
        del found[_HEAD]
    return found
