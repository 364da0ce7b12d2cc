"""Dense GGUF against llama.cpp on the same ids, and against transformers' own reader."""

import dataclasses
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models import gguf_names
from mechprobe.models.gguf_dense import dequantize, load_gguf_dense
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_levels import LADDER
from mechprobe.models.gguf_names import ARCHITECTURES
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from gguf_copy import copy_gguf

LIVELY = 1.5
"""Blocks that mix so strongly that a misplaced row shows, and that amplify rounding as well."""
CASES = [
    "llama",
    "llama_tied_llama3_rope",
    "llama_other_bands",
    "llama_linear_rope",
    "llama_biases",
    "mistral",
    "qwen2",
    "qwen2_yarn",
    "qwen3",
    "phi",
    "phi3",
    "phi3_longrope",
    "gemma2",
    "gemma3",
    "olmo2",
    "granite",
    "smollm3",
    "gpt_neox",
    "gpt_neox_sequential",
    "gpt2",
]


def dense_logprobs(path, prompts):
    model = load_gguf_dense(path, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        rows = [model(torch.tensor([p])).logits[0, -1].double().log_softmax(-1) for p in prompts]
    return torch.stack(rows).numpy()


def native_logprobs(path, prompts):
    with LlamaCppEngine(path, load_gguf_tokenizer(path)) as engine:
        found = engine.next_token_logprobs(prompts).astype(np.float64)
    return found - np.log(np.exp(found).sum(axis=1, keepdims=True))


def divergence(reference, other):
    """Mean KL in nats, one row per prompt."""
    return (np.exp(reference) * (reference - other)).sum(axis=1).mean()


@pytest.fixture(scope="module")
def native(tiny_gguf, id_prompts):
    """llama.cpp's log-probabilities of one model, computed once."""
    return native_logprobs(tiny_gguf("llama", "F16", LIVELY), id_prompts)


@pytest.mark.parametrize("name", CASES)
def test_architectures_agree_with_llama_cpp(name, tiny_gguf, id_prompts):
    path = tiny_gguf(name, "F16", LIVELY)
    ours, theirs = dense_logprobs(path, id_prompts), native_logprobs(path, id_prompts)
    kl, top1 = divergence(ours, theirs), (ours.argmax(1) == theirs.argmax(1)).mean()
    print(f"{name}: KL {kl:.1e} nats, top-1 {top1:.3f}, {len(id_prompts)} prompts")
    assert kl < 1e-5
    assert top1 >= 0.97


def test_no_architecture_is_left_out(tiny_gguf):
    assert {read_gguf(tiny_gguf(n, "F16", LIVELY)).architecture for n in CASES} == {
        a.name for a in ARCHITECTURES
    }


def test_a_wrong_layout_is_seen(monkeypatch, tiny_gguf, id_prompts, native):
    plain = tuple(
        dataclasses.replace(a, layouts=()) if a.name == "llama" else a for a in ARCHITECTURES
    )
    monkeypatch.setattr(gguf_names, "ARCHITECTURES", plain)
    wrong = dense_logprobs(tiny_gguf("llama", "F16", LIVELY), id_prompts)
    assert divergence(wrong, native) > 1e-2


@pytest.mark.parametrize("level", LADDER)
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi", "mistral"])
def test_every_level_agrees_with_llama_cpp(name, level, tiny_gguf, id_prompts):
    path = tiny_gguf(name, level)
    ours, theirs = dense_logprobs(path, id_prompts), native_logprobs(path, id_prompts)
    kl, top1 = divergence(ours, theirs), (ours.argmax(1) == theirs.argmax(1)).mean()
    print(f"{name} {level}: KL {kl:.1e} nats, top-1 {top1:.3f}, {len(id_prompts)} prompts")
    assert kl < 1e-3
    assert top1 >= 0.99
    if level in ("Q3_K_S", "Q2_K"):  # what the level changes dwarfs what the engine changes
        whole = dense_logprobs(tiny_gguf(name, "F16"), id_prompts)
        assert divergence(whole, ours) > 10 * kl


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma2"])
@pytest.mark.parametrize("level", ["Q8_0", "Q4_K_M"])
def test_same_weights_as_transformers_own_reader(name, level, tiny_gguf):
    path = tiny_gguf(name, level)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    ours = load_gguf_dense(path, dtype=torch.float32, device="cpu").state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours[key], value.float()), key


def test_float16_weights_survive_the_round_trip_exactly(tiny_folder, tiny_gguf):
    original = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt_neox"), dtype=torch.float32)
    read = load_gguf_dense(tiny_gguf("gpt_neox"), dtype=torch.float32, device="cpu")
    for key, value in original.state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key


def test_a_block_of_q8_0_by_hand(tiny_gguf):
    file = read_gguf(tiny_gguf("llama", "Q8_0"))
    tensor = file.tensors["blk.1.ffn_down.weight"]
    block = file.raw(tensor)[:34]
    by_hand = np.float32(block[:2].view(np.float16)[0]) * block[2:].view(np.int8)
    assert np.array_equal(dequantize(file, tensor)[0, :32], by_hand.astype(np.float32))


def _rewritten(path, out, *, architecture=None, drop=(), fuse=()):
    """A copy of a GGUF with another architecture, without some tensors, or with fused ones."""
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors if t.name not in drop}
    for layer, suffix in fuse:
        parts = [tensors.pop(f"blk.{layer}.attn_{k}.{suffix}") for k in "qkv"]
        tensors[f"blk.{layer}.attn_qkv.{suffix}"] = np.concatenate(parts)
    kept = [(name, data, None) for name, data in tensors.items()]
    return copy_gguf(path, out, architecture=architecture, tensors=kept)


def test_fused_query_key_value_of_older_phi2_files(tiny_gguf, tmp_path, id_prompts):
    path = tiny_gguf("phi", "F16", LIVELY)
    fused = _rewritten(
        path,
        tmp_path / "fused.gguf",
        fuse=[(layer, kind) for layer in (0, 1) for kind in ("weight", "bias")],
    )
    assert np.array_equal(dense_logprobs(fused, id_prompts), dense_logprobs(path, id_prompts))


def test_unknown_architecture(tiny_gguf, tmp_path):
    path = _rewritten(tiny_gguf(), tmp_path / "m.gguf", architecture="mamba")
    with pytest.raises(ArchitectureError, match=r"'mamba' cannot be read densely; supported: ge"):
        load_gguf_dense(path, dtype=torch.float32, device="cpu")


def test_missing_tensor(tiny_gguf, tmp_path):
    path = _rewritten(tiny_gguf(), tmp_path / "m.gguf", drop=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj"):
        load_gguf_dense(path, dtype=torch.float32, device="cpu")
