"""Tiny random-weight models with a real byte-level tokenizer, as folders and as GGUF files."""

import http.client
import json
import urllib.parse
from collections.abc import Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mechprobe.models import gguf_write
from mechprobe.models.gguf_check import Comparison
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.quantize_gguf import quantize_gguf

VOCABULARY = 320
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT = [1.0 + i / 16 for i in range(32)]
LONG = [2.0 + i / 8 for i in range(32)]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied_llama3_rope": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3
            | {"rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192},
        },
    ),
    "llama_other_bands": (
        "Llama",
        {
            "rope_parameters": LLAMA3
            | {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
        },
    ),
    "llama_linear_rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama_width_192": (
        "Llama",
        {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64},
    ),
    "mistral": ("Mistral", {"head_dim": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen2_yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 96}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi3": ("Phi3", {}),
    "phi3_longrope": (
        "Phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": LONG,
                "short_factor": SHORT,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "gemma2": ("Gemma2", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8}),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 8,
            "num_hidden_layers": 7,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {"num_key_value_heads": None, "use_parallel_residual": False},
    ),
    "gpt2": ("GPT2", {}),
}
CORPUS = ("the quick brown fox", "how do I bake bread at home?", "it's 2024, we'll see 12345")


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        min_frequency=1,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )


def _config(family: str, options: dict[str, Any]) -> Any:
    values = {k: v for k, v in (SIZE | options).items() if v is not None}
    if family == "GPT2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
        names |= {"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
        values.pop("num_key_value_heads"), values.pop("intermediate_size")
        values = {names.get(k, k): v for k, v in values.items()}
    return getattr(transformers, f"{family}Config")(**values)


def save_tiny(name: str, folder: Path, gain: float) -> Path:
    """A model whose blocks mix tokens with strength `gain` and whose logits are peaked."""
    family, options = MODELS[name]
    config = _config(family, options)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(5)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * gain / parameter.shape[-1] ** 0.5)
        embedding.copy_(torch.randn(embedding.shape, generator=draw))
        successor = torch.randperm(len(embedding), generator=draw)
        if config.tie_word_embeddings:
            embedding.mul_(0.06)
        else:
            model.get_output_embeddings().weight.copy_(0.035 * embedding[successor])
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def uncompared():
    """Write without the comparison with the source, where a test makes its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_write, "compare_with_source", lambda *_, **__: Comparison(0))
        yield


@pytest.fixture
def without_comparison():
    """For tests that hold what is written against transformers and llama.cpp themselves."""
    with uncompared():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(name, gain)`: a transformers folder, made once."""

    @cache
    def make(name: str = "llama", gain: float = 0.6) -> Path:
        return save_tiny(name, tmp_path_factory.mktemp("weights") / "m", gain)

    return make


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder, tmp_path_factory):
    """`tiny_gguf(name, level, gain)`: a GGUF of that level, made once by the real writers."""

    @cache
    def make(name: str = "llama", level: str = "F16", gain: float = 0.6) -> Path:
        out = tmp_path_factory.mktemp("gguf") / f"{level}.gguf"
        if level == "F16":
            with uncompared():
                return write_f16_gguf(tiny_folder(name, gain), out)
        return quantize_gguf(make(name, "F16", gain), level, out)

    return make


@pytest.fixture(scope="session")
def id_prompts() -> list[list[int]]:
    """48 prompts of 4 to 24 ids."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 25, size=48)
    return [draw.integers(3, VOCABULARY - 8, size=n).tolist() for n in lengths]


@pytest.fixture(scope="session")
def llama_cpp_ids():
    """`llama_cpp_ids(path, texts)`: ids that llama.cpp itself gives, special tokens read."""
    xllamacpp = pytest.importorskip("xllamacpp")

    def tokenize(path: Path, texts: Sequence[str], *, add_special: bool = True) -> list[list[int]]:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity = 64, 1, -1
        params.warmup = params.fit_params = params.ui = False
        params.chat_template = "chatml"  # it cannot parse every file's own
        server = xllamacpp.Server(params)
        # A server that is closed before its loop has begun never ends; one answer says it has.
        server.handle_completions({"prompt": [0], "max_tokens": 1})
        address = urllib.parse.urlsplit(server.listening_address)
        with closing(http.client.HTTPConnection(address.hostname, address.port)) as connection:
            found = []
            for text in texts:
                body = {"content": text, "add_special": add_special, "parse_special": True}
                connection.request("POST", "/tokenize", json.dumps(body))
                found.append(json.loads(connection.getresponse().read())["tokens"])
        return found

    return tokenize


@pytest.fixture(scope="session")
def save_vocabulary():
    """`save_vocabulary(path, metadata)`: a GGUF with the tokenizer that `metadata` describes."""
    return _save_vocabulary


def _save_vocabulary(
    path: Path, metadata: dict[str, Any], *, name: str = "", width: int = 32
) -> Path:
    """The smallest llama that llama.cpp loads, with the tokenizer that `metadata` describes."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    if name:
        writer.add_name(name)
    for key in ("embedding_length", "feed_forward_length", "rope.dimension_count"):
        writer.add_uint32(f"llama.{key}", width)
    for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_uint32("llama.context_length", 64)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        add = {
            str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32,
            list: writer.add_array,
        }[type(value)]  # fmt: skip
        add(f"tokenizer.{key}", value)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    matrices = [f"blk.0.{name}.weight" for name in names]
    norms = ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"]
    rows = len(metadata["ggml.tokens"])
    writer.add_tensor("token_embd.weight", draw.normal(size=(rows, width)).astype(np.float16))
    for name in matrices:
        writer.add_tensor(name, draw.normal(size=(width, width)).astype(np.float16))
    for name in norms:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
