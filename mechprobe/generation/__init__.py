"""Floor 4: weights become text. Nothing here scores."""

from typing import TYPE_CHECKING, Any

from mechprobe.generation.base import Completion, Engine, Sampling

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

__all__ = ["Completion", "Engine", "Sampling", "open_engine"]


def open_engine(checkpoint: "Checkpoint", *, threads: int | None = None, **options: Any) -> Engine:
    """The engine that runs a checkpoint: llama.cpp for a native GGUF, else the graph itself.

    Args:
        checkpoint: What was loaded.
        threads: Of the CPU; of PyTorch they are the process's. None is measured by llama.cpp.
        options: Of `TransformersEngine` or `LlamaCppEngine`.
    """
    if checkpoint.module is None:
        from mechprobe.generation.llamacpp import LlamaCppEngine

        return LlamaCppEngine(checkpoint.path, checkpoint.tokenizer, threads=threads, **options)
    from mechprobe.generation.hf import TransformersEngine

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return TransformersEngine(checkpoint, **options)
