"""The border to libraries that read a checkpoint's own files: whatever they raise is one line.

transformers, tokenizers and safetensors raise anything on a damaged file, assertions, index errors
and a panic of native code (which is no `Exception`) among them; and they allocate what a damaged
number asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import CheckpointError, MechprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks?|blk)\.(\d+)\.")
"""At the very beginning too: GPT-2 is published as its backbone alone (`h.0.ln_1.weight`)."""
_MOST_PARTS: Final = 1 << 16
"""Layers, heads or experts of one model."""
_SLACK: Final = 1 << 24
"""Numbers that a graph has and no file holds: tables of rotary frequencies, causal masks."""


@contextmanager
def foreign_errors(refuse: Callable[[str], MechprobeError]) -> Iterator[None]:
    """Turn what a library raises inside the block into one line.

    Args:
        refuse: Makes the error of the first line of what the library says.

    Raises:
        MechprobeError: What `refuse` makes.
    """
    try:
        yield
    except MechprobeError:
        raise
    except Exception as error:
        raise refuse(first_line(error)) from error
    except BaseException as error:
        # tokenizers and safetensors are written in Rust; PyO3 has no importable name for its panic
        if type(error).__name__ != "PanicException":
            raise
        raise refuse(f"its reader broke off: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def require_parts(config: Mapping[str, Any], tensors: Iterable[str], where: str) -> None:
    """Refuse a configuration of more parts than the weights have, before a graph is built of it.

    Args:
        config: config.json.
        tensors: Names of the weights.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: There are more layers than in the weights, or over 65,536 heads or experts.
    """
    numbered = [int(match[1]) for name in tensors if (match := _LAYER.search(name))]
    layers = max(numbered, default=0) + 1
    for part in (config, config.get("text_config")):
        for name, value in part.items() if isinstance(part, dict) else ():
            if not name.startswith(("num_", "n_")) or not isinstance(value, int):
                continue
            if name in ("num_hidden_layers", "n_layer", "n_layers") and value > layers:
                raise CheckpointError(
                    f"{where}: config.json says {name} {value} and the weights hold {layers} layers"
                )
            if value > _MOST_PARTS and name not in ("n_positions", "n_ctx", "num_embeddings"):
                said = f"config.json says {name} {value}, and no model has so many"
                raise CheckpointError(f"{where}: {said}")


def require_size(graph: PreTrainedModel, held: int, where: str) -> None:
    """Refuse an empty graph that needs far more numbers than the files hold.

    Args:
        graph: On the meta device, so that nothing is allocated yet.
        held: Numbers in the files.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: It does; a size in the configuration is wrong.
    """
    needed = sum(each.numel() for each in graph.parameters())
    needed += sum(each.numel() for each in graph.buffers())
    if needed > 2 * held + _SLACK:
        raise CheckpointError(
            f"{where}: its configuration describes a model of {needed:,} numbers and the files "
            f"hold {held:,}; a size in it is wrong"
        )
