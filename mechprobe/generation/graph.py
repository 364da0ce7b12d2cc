"""What a transformers graph says of itself: its configuration, how answers end, what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mechprobe.errors import NumericsError
from mechprobe.models.end_tokens import end_tokens, gguf_end_tokens
from mechprobe.models.gguf_file import read_gguf

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts


def stop_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """Ids that end an answer, on every engine: those at which llama.cpp stops.

    Of a GGUF exactly those. A folder adds what its configuration, its generation config and its
    tokenizer declare.
    """
    if checkpoint.quant.method == "gguf":
        return frozenset(gguf_end_tokens(read_gguf(checkpoint.path).metadata))
    module, tokenizer = checkpoint.module, checkpoint.tokenizer
    found = end_tokens(tokenizer.get_vocab())
    for config in (getattr(module, "generation_config", None), getattr(module, "config", None)):
        named = getattr(config, "eos_token_id", None)
        ids = named if isinstance(named, list | tuple) else [named]
        found.update(int(token) for token in ids if token is not None)
    return frozenset(found | ({tokenizer.eos_token_id} - {None}))


def config_of(checkpoint: Checkpoint) -> Any:
    """The configuration of its graph."""
    module: Any = checkpoint.module
    return module.config


def cell_of(checkpoint: Checkpoint) -> str:
    """How messages name it."""
    return f"{checkpoint.source} ({checkpoint.quant.precision}, {checkpoint.kernel})"


def name_the_layer(checkpoint: Checkpoint, prompts: EncodedPrompts) -> None:
    """Look for the first block whose output is not finite.

    Raises:
        NumericsError: Names it. Nothing is raised where only the head, or a later token, is at
            fault.
    """
    from mechprobe.activations.caching import run_with_cache

    try:
        run_with_cache(checkpoint, prompts, "blocks.*.hook_resid_post", batch_size=len(prompts))
    except NumericsError as error:
        found = str(error).removeprefix(f"{checkpoint.source}: ")
        raise NumericsError(f"{cell_of(checkpoint)}: {found}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory; the CPU's allocator only says so in words."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text
