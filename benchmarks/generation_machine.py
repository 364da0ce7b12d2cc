"""What `generation.py` compares the engines with: the machine's own rate, and the busy machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mechprobe.models.checkpoint import Checkpoint

_TWO_THREADS = """
import torch
torch.set_num_threads(2)
a = torch.randn(1024, 1024)
while True:
    a @ a
"""
BUSY = {"threads": ("while True: pass", 3.0), "programs": (_TWO_THREADS, 5.0)}
"""What each of two other programs runs, and how much longer work beside them may take at most."""


def matmul_seconds(device: str, seconds: float = 0.5) -> tuple[float, float]:
    """Wall and CPU seconds of one multiplication and addition in PyTorch's product, 1024 cubed."""
    a, b = (torch.randn(1024, 1024, device=device) for _ in range(2))
    a @ b
    done, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        done += 2 * 1024**3
    return (time.perf_counter() - begun) / done, (time.process_time() - cpu) / done


def work(checkpoint: Checkpoint, prompts: list[list[int]], answers: list[list[int]]) -> float:
    """Multiplications and additions of the weights that the answers need, each token once.

    What all prompts begin with counts once, and the head only where a token is predicted; attention
    over earlier tokens, which is small beside it here, does not count.
    """
    module = checkpoint.module
    assert module is not None
    head = module.get_output_embeddings().weight.numel()
    blocks = sum(
        layer.weight.numel() for layer in module.modules() if isinstance(layer, torch.nn.Linear)
    )
    blocks -= head
    shared = next(
        (i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1),
        min(map(len, prompts)),
    )
    read = shared + sum(len(row) - shared for row in prompts)
    written = sum(map(len, answers))
    # the last token of an answer goes through nothing any more
    return 2.0 * (blocks * (read + written - len(answers)) + head * written)


@contextmanager
def beside(code: str) -> Iterator[None]:
    """Two other programs run while the block does."""
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        time.sleep(3.0)  # until they have begun
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()
