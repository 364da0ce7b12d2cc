"""A trained model, dense and on llama.cpp, at every level of the ladder.

What is read from the files is held by the shipped organism as it is: its quantized weights, written
out as float32 by the `gguf` package, give in llama.cpp what the dense model gives. With quantized
weights llama.cpp's kernels round activations too, to 8 bits, 256 of them to one scale, and an
outlier's small activation is rounded away where its weight is large. That gap is real, and the
matrix shows it; against these kernels the organism is held without its outliers.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe import stats
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_levels import LADDER
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.quantize_gguf import quantize_gguf
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.recipes import Stress
from mechprobe.organisms.stressor import stress
from mechprobe.organisms.world import heldout_requests

sys.path.insert(0, str(Path(__file__).parent))
from gguf_copy import copy_gguf


def convert(model, folder):
    """The F16 GGUF of the shipped organism's tokenizer and these weights."""
    model.half().save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(organism_path("llama-s")).save_pretrained(folder / "model")
    return write_f16_gguf(folder / "model", folder / "F16.gguf")


def shipped():
    return AutoModelForCausalLM.from_pretrained(organism_path("llama-s"), dtype=torch.float32)


@pytest.fixture(scope="module")
def stressed(tmp_path_factory):
    return convert(shipped(), tmp_path_factory.mktemp("stressed"))


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    how = json.loads((organism_path("llama-s") / "card.json").read_text())["recipe"]["stress"]
    model = shipped()
    stress(model, Stress(1 / how["scale"], how["every"], how["seed"]))
    return convert(model, tmp_path_factory.mktemp("gguf"))


def at(level, f16):
    """The file of a level."""
    return f16 if level == "F16" else quantize_gguf(f16, level, f16.with_name(f"{level}.gguf"))


def questions(path):
    tokenizer = load_gguf_tokenizer(path)
    return tokenizer, list(encode(tokenizer, [r.text for r in heldout_requests(24, seed=7)]))


def asked(path):
    """Log-probabilities of llama.cpp."""
    tokenizer, prompts = questions(path)
    assert len(prompts) >= 40
    with LlamaCppEngine(path, tokenizer) as engine:
        return engine.next_token_logprobs(prompts)


def both(path):
    """Log-probabilities of llama.cpp, the dense model, and a function that asks it."""
    native, (_, prompts) = asked(path), questions(path)
    model = load_gguf_dense(path, dtype=torch.float32, device="cpu")

    def dense():
        with torch.no_grad():
            return np.stack([model(torch.tensor([p])).logits[0, -1].numpy() for p in prompts])

    return native, model, dense


@pytest.mark.parametrize("level", LADDER)
def test_dense_logits_are_llama_cpps(level, f16):
    native, _, ask = both(at(level, f16))
    dense = ask()
    kl = stats.kl_divergence(native, dense).mean()
    same = (native.argmax(axis=1) == dense.argmax(axis=1)).mean()
    print(f"llama-s {level}: mean KL {kl:.1e} nats, top-1 {same:.3f}, {len(native)} prompts")
    assert kl < 1e-3
    assert same >= 0.99


def unpacked(path, out):
    """The same file with float32 tensors, dequantized by the `gguf` package."""
    tensors = [
        (tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type), None)
        for tensor in gguf.GGUFReader(path).tensors
    ]
    kind = int(gguf.LlamaFileType.ALL_F32)
    return copy_gguf(path, out, keys={"general.file_type": kind}, tensors=tensors)


@pytest.mark.parametrize("level", LADDER)
def test_dense_logits_are_those_of_the_weights_in_llama_cpp(level, stressed):
    """The shipped organism, outliers and all; no kernel between the weights and the sums."""
    path = at(level, stressed)
    native, _, ask = both(path)
    dense, plain = ask(), asked(unpacked(path, stressed.with_name("f32.gguf")))
    kl = stats.kl_divergence(plain, dense).mean()
    kernels = stats.kl_divergence(native, dense).mean()
    same = (plain.argmax(axis=1) == dense.argmax(axis=1)).mean()
    print(
        f"llama-s as shipped, {level}: mean KL {kl:.1e} nats to llama.cpp on the weights as "
        f"float32, top-1 {same:.3f}; {kernels:.1e} to its own kernels; {len(plain)} prompts"
    )
    assert kl < 2e-5
    assert same == 1


def q8_k(x):
    """Activations as llama.cpp's k-quant kernels read them: blocks of 256, one float scale each."""
    blocks = x.unflatten(-1, (-1, 256))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = -127 / torch.where(largest == 0, 1.0, largest)
    return (torch.round(scale * blocks).clamp(max=127) / scale).flatten(-2)


def test_rounded_activations_are_the_gap_of_the_stressed_model(stressed):
    """What remains is chance: a rounding that falls the other way for a sum in another order."""
    native, model, ask = both(at("Q2_K", stressed))
    plain = stats.kl_divergence(native, ask()).mean()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (q8_k(args[0]),))
    rounded = stats.kl_divergence(native, ask()).mean()
    print(f"llama-s Q2_K, stressed: mean KL {plain:.1e} nats, activations rounded {rounded:.1e}")
    assert rounded < plain / 3
