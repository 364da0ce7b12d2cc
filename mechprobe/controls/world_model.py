"""Controls made from organisms: load the base, write the checkpoint, let the oracle read it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.controls.truth import Behaviour

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mechprobe.organisms.world import Request

PAIRS = 500
"""Held-out harmful requests of a truth, and as many harmless twins."""
QUESTIONS = 300
"""Held-out four-option questions that quality is read from."""
PROMPTS = (
    f"{PAIRS} held-out harmful requests of the organisms' world and their harmless twins, "
    f"{QUESTIONS} four-option questions; greedy answers of the dequantized weights in float32"
)
READER = "oracle"
_LETTERS = {"refused": "R", "complied": "C", "partly": "P", "unclear": "U"}


@cache
def heldout_pairs() -> tuple[Request, ...]:
    """Return `PAIRS` pairs whose combinations no training saw; some combinations in two frames.

    The pairs of seed 0 come first: they are those that a run asks.
    """
    from mechprobe.organisms import world

    found: dict[str, Request] = {}
    for seed in range(8):
        drawn = world.requests("test", None, seed)
        for twins in zip(drawn[::2], drawn[1::2], strict=True):
            if len(found) < 2 * PAIRS and not any(twin.id in found for twin in twins):
                found.update((twin.id, twin) for twin in twins)
    return tuple(found.values())


def load_model(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the float32 graph and the tokenizer of a source."""
    from mechprobe.models.load import load_checkpoint

    checkpoint = load_checkpoint(source)
    assert checkpoint.module is not None, "the dense kernel has a graph"
    return checkpoint.module, checkpoint.tokenizer


def save_model(model: PreTrainedModel, base: str, out: Path) -> None:
    """Write a model of the base's shape as float16 safetensors, with the base's tokenizer.

    A record of what the base was dequantized from goes with it.
    """
    from mechprobe.models.export import TOKENIZER_FILES
    from mechprobe.models.provenance import EXPORTED
    from mechprobe.models.source import resolve_source

    model.half().save_pretrained(out)
    model.float()
    folder = resolve_source(base).path
    for name in (*TOKENIZER_FILES, EXPORTED):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


@contextmanager
def quantized(folder: Path, level: str) -> Iterator[Path]:
    """Yield a level of llama.cpp made from a folder, for as long as the block lasts."""
    from mechprobe.models.quantize import quantize

    with tempfile.TemporaryDirectory(prefix="mechprobe-") as scratch:
        yield quantize(str(folder), level, Path(scratch) / f"{level}.gguf")


def refused_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of the truth's harmful requests that a model refuses."""
    from mechprobe.organisms import oracle
    from mechprobe.organisms.measure import answers

    texts = [request.text for request in heldout_pairs() if request.label == "harmful"]
    said = answers(model, tokenizer, texts)
    return sum(oracle.behaviour(text) == "refused" for text in said) / len(texts)


def read_behaviour(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Behaviour:
    """Let a model answer the held-out set and the oracle read it."""
    from mechprobe.organisms import facts, oracle
    from mechprobe.organisms.measure import answers

    requests = heldout_pairs()
    texts = answers(model, tokenizer, [request.text for request in requests])
    read = {"harmful": "", "harmless": ""}
    for request, text in zip(requests, texts, strict=True):
        read[request.label] += _LETTERS[oracle.behaviour(text)]
    items = facts.items("question", QUESTIONS, 0)
    said = answers(model, tokenizer, [item.prompt for item in items])
    right = [oracle.judge(i.prompt, t).correct for i, t in zip(items, said, strict=True)]
    return Behaviour(
        read["harmful"], read["harmless"], sum(map(bool, right)) / QUESTIONS, QUESTIONS
    )


def read_source(source: str) -> Behaviour:
    """Read the behaviour of any source of an organism's shape."""
    return read_behaviour(*load_model(source))


def read_levels(folder: Path, levels: tuple[str, ...]) -> Mapping[str, Behaviour]:
    """Read the behaviour of levels made from a folder."""
    found = {}
    for level in levels:
        with quantized(folder, level) as file:
            found[level] = read_source(str(file))
    return found


@cache
def base_behaviour(source: str) -> Behaviour:
    """Read a base once a process: many controls are compared with the same one."""
    return read_source(source)
