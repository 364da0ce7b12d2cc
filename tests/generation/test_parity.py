"""One set of ids into every engine, and the same greedy text out of all of them."""

import struct
from collections import Counter

import pytest
import torch

from mechprobe.generation import open_engine
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode, require_parity
from mechprobe.organisms import organism_path
from mechprobe.organisms.oracle import behaviour
from mechprobe.organisms.world import heldout_requests

SAME = 0.99


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The shipped organism as float32 graph, as F16 GGUF in the graph, and in llama.cpp."""
    f16 = write_f16_gguf(organism_path("llama-s"), tmp_path_factory.mktemp("gguf") / "F16.gguf")
    return {
        "transformers": load_checkpoint("organism:llama-s", dtype=torch.float32),
        "dense F16": load_checkpoint(str(f16), kernel="dense", dtype=torch.float32),
        "llama.cpp F16": load_checkpoint(str(f16), kernel="native"),
    }


def test_every_engine_is_given_the_same_ids_and_says_the_same(checkpoints):
    texts = [request.text for request in heldout_requests(64, seed=1)]
    assert len(texts) == 128
    rendered = {name: encode(held.tokenizer, texts) for name, held in checkpoints.items()}
    first = rendered["transformers"]
    for name, prompts in rendered.items():
        require_parity(first.digest, prompts.digest, name)
    said = {}
    for name, held in checkpoints.items():
        with open_engine(held) as engine:
            said[name] = engine.generate(first.ids, max_new_tokens=32)
    reference = said.pop("transformers")
    assert len({answer.text for answer in reference}) > 20
    assert sum(answer.stop == "eos" for answer in reference) > 100
    for name, answers in said.items():
        differ = [
            f"{name}, {text!r}: {a.text!r} and {b.text!r}"
            for text, a, b in zip(texts, reference, answers, strict=True)
            if a.text != b.text
        ]
        assert len(differ) <= (1 - SAME) * len(texts), "\n".join(differ)
        assert [a.prompt_tokens for a in answers] == [len(row) for row in first.ids]
        print(f"{name}: {len(texts) - len(differ)} of {len(texts)} answers are the same")
        print("\n".join(differ))


def test_dense_stops_where_llama_cpp_does_when_the_file_names_another_eos(tmp_path):
    """llama.cpp knows `<|end|>` by its name; the file declares `<|pad|>` as its EOS."""
    file = write_f16_gguf(organism_path("llama-s"), tmp_path / "F16.gguf")
    content, key = bytearray(file.read_bytes()), b"tokenizer.ggml.eos_token_id"
    struct.pack_into("<I", content, content.index(key) + len(key) + 4, 0)
    file.write_bytes(content)
    texts = [request.text for request in heldout_requests(3, seed=1)]
    said = {}
    for kernel in ("native", "dense"):
        checkpoint = load_checkpoint(str(file), kernel=kernel)
        with open_engine(checkpoint) as engine:
            answers = engine.generate(encode(checkpoint.tokenizer, texts).ids, max_new_tokens=24)
        said[kernel] = [(answer.text, answer.stop) for answer in answers]
        assert Counter(behaviour(text) for text, _ in said[kernel]) == {"refused": 3, "complied": 3}
    assert said["native"] == said["dense"]
