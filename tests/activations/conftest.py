"""Tiny models of every architecture in the table, at random weights, and prompts for them.

`arch` in a test's arguments runs it once per model. `tiny(name)` gives the checkpoint.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo
from mechprobe.models.rendering import EncodedPrompts

VOCABULARY = 128
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"head_dim": 16, "sliding_window": 6}
GLOBAL_LAST = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 24}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, **WINDOW}),
    "gemma3": ("Gemma3", {**GROUPED, **WINDOW, **GLOBAL_LAST}),
    "gemma4": (
        "Gemma4",
        {**GROUPED, **WINDOW, **GLOBAL_LAST, **PER_LAYER, "global_head_dim": 32}
        | {"num_kv_shared_layers": 1, "use_double_wide_mlp": True},
    ),
    "olmo2": ("Olmo2", GROUPED),
    "granite": (
        "Granite",
        {**GROUPED, "residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    ),
    "smollm3": ("SmolLM3", GROUPED),
    "gpt_neox": ("GPTNeoX", {"use_parallel_residual": False}),
    "gpt_neox_parallel": ("GPTNeoX", {"use_parallel_residual": True}),
    "gpt2": ("GPT2", {}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**GROUPED, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "mlp_only_layers": [1]},
    ),
    "gpt_oss": (
        "GptOss",
        {**GROUPED, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
"""Name of a test model to (class stem in transformers, config beyond `SIZE`)."""
TEXT_CONFIG = {"Gemma3": "Gemma3TextConfig", "Gemma4": "Gemma4TextConfig"}


def make_model(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A seeded model whose biases, norms and scalars all differ from what they start as."""
    stem, extra = MODELS[name]
    config_class = getattr(transformers, TEXT_CONFIG.get(stem, f"{stem}Config"))
    class_name = "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config_class(**SIZE | extra | changes))
    return randomize(model)


def randomize(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Weights large enough that every part matters to the stream."""
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=draw)
        if weight.dim() > 1:
            weight.data = noise / math.sqrt(weight.shape[-1])
        else:
            weight.data += 0.3 * noise
    for path, buffer in model.named_buffers():
        if path.endswith("layer_scalar"):
            buffer.fill_(0.8)
    return model.eval().requires_grad_(False)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One word per id."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3"
    )


def wrap(model: transformers.PreTrainedModel, name: str) -> Checkpoint:
    """A loaded model as the checkpoint that loading would return."""
    return Checkpoint(
        source=name,
        path=Path(),
        quant=QuantInfo("FP32", "none"),
        kernel="dense",
        tokenizer=tokenizer(),
        digest="0" * 64,
        module=model,
        architecture=architecture_for(model),
    )


@cache
def _tiny(name: str) -> Checkpoint:
    return wrap(make_model(name), name)


def make_prompts(lengths: tuple[int, ...], seed: int = 0) -> EncodedPrompts:
    """Random prompts of the given lengths in tokens; no special tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = tuple(
        tuple(torch.randint(4, VOCABULARY, (length,), generator=draw).tolist())
        for length in lengths
    )
    pieces = tuple(tuple(f"w{i}" for i in row) for row in ids)
    return EncodedPrompts(ids, tuple(" ".join(row) for row in pieces), pieces, 1, "raw")


@pytest.fixture
def tiny() -> Callable[[str], Checkpoint]:
    """Checkpoint of a test model by name, made once; leave it as you found it."""
    return _tiny


@pytest.fixture
def fresh() -> Callable[..., Checkpoint]:
    """A new checkpoint of a test model, to change at will: `fresh(name, **config_changes)`."""
    return lambda name, **changes: wrap(make_model(name, **changes), name)


@pytest.fixture
def prompts_of() -> Callable[..., EncodedPrompts]:
    """Random prompts: `prompts_of((5, 9, 7), seed=0)`."""
    return make_prompts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `arch` once per test model."""
    if "arch" in metafunc.fixturenames:
        metafunc.parametrize("arch", list(MODELS))
