"""The shipped organism, dense and on llama.cpp, at every level.

Its stressed channels make llama.cpp's own rounding visible: k-quant kernels round the activations
to 8 bits, which dequantized weights do not. So the gap is measured twice, against the plain graph
and against the graph with that rounding added; what the second one leaves is the reader's.
"""

import numpy as np
import pytest
import torch

from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.quantize_gguf import LADDER, quantize_gguf
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import heldout_requests

pytestmark = pytest.mark.verify


def q8_k(x):
    """ggml's Q8_K: 256 values share a float32 scale, the largest becomes -127."""
    blocks = x.reshape(-1, 256).double()
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    inverse = torch.where(largest == 0, 0.0, -127 / largest)
    rounded = torch.round(blocks * inverse).clamp(max=127)
    return torch.where(inverse == 0, 0.0, rounded / inverse).reshape(x.shape).to(x.dtype)


def q8_0(x):
    """ggml's Q8_0: 32 values share a float16 scale."""
    blocks = x.reshape(-1, 32)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    rounded = torch.round(torch.where(scale == 0, 0.0, blocks / scale))
    return (rounded * scale.half().float()).reshape(x.shape)


def logprobs(model, prompts):
    with torch.no_grad():
        rows = [model(torch.tensor([p])).logits[0, -1].double().log_softmax(-1) for p in prompts]
    return torch.stack(rows).numpy()


def gap(ours, theirs):
    kl = (np.exp(ours) * (ours - theirs)).sum(axis=1).mean()
    return kl, (ours.argmax(1) == theirs.argmax(1)).mean()


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    return write_f16_gguf(organism_path("llama-s"), tmp_path_factory.mktemp("gguf") / "F16.gguf")


@pytest.mark.parametrize("level", LADDER)
def test_the_gap_is_llama_cpps_rounding(level, f16):
    path = f16 if level == "F16" else quantize_gguf(f16, level, f16.with_name(f"{level}.gguf"))
    tokenizer = load_gguf_tokenizer(path)
    prompts = list(encode(tokenizer, [r.text for r in heldout_requests(24, seed=7)]))
    assert len(prompts) >= 40
    with LlamaCppEngine(path, tokenizer) as engine:
        native = engine.next_token_logprobs(prompts).astype(np.float64)
    model = load_gguf_dense(path, dtype=torch.float32, device="cpu")
    plain, plain_top = gap(logprobs(model, prompts), native)
    if level != "F16":
        rounding = q8_0 if level == "Q8_0" else q8_k
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))
    rounded, rounded_top = gap(logprobs(model, prompts), native)
    print(
        f"llama-s {level}: KL {plain:.1e} nats, top-1 {plain_top:.3f}; with 8-bit activations "
        f"KL {rounded:.1e}, top-1 {rounded_top:.3f}; {len(prompts)} prompts"
    )
    assert rounded < max(1e-5, plain / 4)
    assert min(plain_top, rounded_top) >= (0.99 if level not in ("Q3_K_S", "Q2_K") else 0.85)
