"""LongRoPE on llama.cpp: what the dense kernel gives for each prompt, whatever stands beside it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf

_path = Path(__file__).parents[1] / "models" / "gguf" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_ggufs", _path)
tiny_ggufs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_ggufs)

LENGTHS = (40, 257, 250, 300, 243, 255)
"""The original context has 256 tokens."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longrope")
    rope = tiny_ggufs.MODELS["phi3_longrope"][1]["rope_parameters"]
    rope |= {"long_factor": [2.0 + i for i in range(32)]}
    return write_f16_gguf(tiny_ggufs.save_tiny("phi3_longrope", folder, 0.6), folder / "F16.gguf")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 300, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def dense(file):
    return load_gguf_dense(file, dtype=torch.float32, device="cpu")


def test_each_prompt_gets_the_factors_of_its_own_length(file, rows, dense):
    with torch.no_grad():
        expected = np.stack(
            [torch.log_softmax(dense(torch.tensor([r])).logits[0, -1].double(), -1) for r in rows]
        )
    with LlamaCppEngine(file, load_gguf_tokenizer(file)) as engine:
        for _ in range(2):  # a long context is left behind by the first
            found = engine.next_token_logprobs(rows)
            assert np.abs(found - expected).max() < 3e-3  # 0.05 with the other factors
        assert engine.notes == ()
        answers = engine.generate(rows, max_new_tokens=6)
    for row, answer in zip(rows, answers, strict=True):
        ids = torch.tensor([row])
        out = dense.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            eos_token_id=1, pad_token_id=2,
        )[0, len(row) :].tolist()  # fmt: skip
        assert list(answer.ids) == [token for token in out if token != 1]


def test_what_cannot_have_its_own_factors_is_said(file, rows):
    tokenizer = load_gguf_tokenizer(file)
    with LlamaCppEngine(file, tokenizer) as engine:
        engine.next_token_logprobs([rows[2][:6] + rows[2]])  # 256 tokens fill the context
        (note,) = engine.notes
        assert "long factors" in note and "256 tokens" in note
    with LlamaCppEngine(file, tokenizer, n_ctx=512) as engine:
        assert engine.notes == ("n_ctx 512: LongRoPE's long factors for every prompt",)
    with LlamaCppEngine(file, tokenizer, n_ctx=256) as engine:
        assert engine.notes == ("n_ctx 256: LongRoPE's short factors for every prompt",)
