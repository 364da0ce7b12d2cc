"""The two ends of a model, embedding and output matrix: tied or not, stored once or twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.models.gguf_names import GgufArchitecture

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Array = np.ndarray[Any, np.dtype[Any]]
EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
_ALWAYS: Final = frozenset({"phi2", "olmo2", "gptneox"})
"""llama.cpp wants an output matrix from these, also where it is the embedding."""
_NEVER: Final = frozenset({"gemma2"})
"""llama.cpp takes the embedding for the output matrix of these, whatever else there is."""


def embedding_and_head(
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
    for one, other in ((EMBEDDING, HEAD), (HEAD, EMBEDDING)):
        if one in found:
            continue
        if not tied or other not in found:
            what = "the embedding" if one is EMBEDDING else "the output matrix"
            raise CheckpointError(
                f"{folder}: {what} is not among the weights and tie_word_embeddings is "
                f"{str(tied).lower()}; transformers would draw it at random"
            )
        found[one] = found[other]
    same = np.array_equal(found[EMBEDDING], found[HEAD])
    if architecture.name in _NEVER:
        if not same:
            raise ArchitectureError(
                f"{folder}: tie_word_embeddings: the output matrix is not the embedding, and "
                f"llama.cpp's {architecture.name} graph has no other; a GGUF would be another model"
            )
        del found[HEAD]
    elif same and tied and architecture.name not in _ALWAYS:
        del found[HEAD]
    return found
