"""Tiny random models, and a NumPy bench that packs and unpacks bit by bit.

The bench shares nothing with the package: it walks single bits in loops, where the package shifts
whole tensors, and it was written from the format descriptions.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 264,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
KINDS = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "phi": {},
    "gpt2": {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
}
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def unpack_bits(words, bits, count):
    """Little-endian bit stream along the last axis, one bit at a time."""
    words = words.view(np.uint32)
    out = np.zeros((*words.shape[:-1], count), dtype=np.int64)
    for field in range(count):
        for bit in range(bits):
            word, place = divmod(field * bits + bit, 32)
            out[..., field] += ((words[..., word] >> np.uint32(place)) & 1).astype(np.int64) << bit
    return out


def pack_bits(values, bits):
    """The inverse of `unpack_bits`, int32."""
    count = values.shape[-1]
    words = np.zeros((*values.shape[:-1], -(-count * bits // 32)), dtype=np.uint32)
    for field in range(count):
        for bit in range(bits):
            word, place = divmod(field * bits + bit, 32)
            words[..., word] |= ((values[..., field] >> bit) & 1).astype(np.uint32) << np.uint32(
                place
            )
    return words.view(np.int32)


def awq_columns(words):
    """Column 8w + (0, 2, 4, 6, 1, 3, 5, 7)[i] is nibble i of word w."""
    words = words.view(np.uint32)
    out = np.zeros((words.shape[0], words.shape[1] * 8), dtype=np.int64)
    for word in range(words.shape[1]):
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            out[:, 8 * word + column] = (words[:, word] >> np.uint32(4 * nibble)) & 15
    return out


def awq_dense(qweight, qzeros, scales, group_size):
    """(out, in) float32, an input feature at a time."""
    q, z = awq_columns(qweight), awq_columns(qzeros)
    dense = np.zeros((q.shape[1], q.shape[0]), dtype=np.float32)
    for i in range(q.shape[0]):
        g = i // group_size
        dense[:, i] = (q[i] - z[g]).astype(np.float32) * scales[g].astype(np.float32)
    return dense


def gptq_dense(qweight, qzeros, scales, g_idx, bits, stored_less_one):
    """(out, in) float32, an input feature at a time."""
    features, columns = len(g_idx), scales.shape[1]
    q = unpack_bits(np.ascontiguousarray(qweight.T), bits, features).T
    z = unpack_bits(qzeros, bits, columns)
    if stored_less_one:
        z = (z + 1) % 2**bits
    dense = np.zeros((columns, features), dtype=np.float32)
    for i, g in enumerate(g_idx):
        dense[:, i] = (q[i] - z[g]).astype(np.float32) * scales[g].astype(np.float32)
    return dense


def random_gptq(rng, rows, columns, bits, group, *, desc_act, symmetric, v1):
    """A layer's GPTQ tensors with random integers."""
    groups = -(-columns // group)
    q = rng.integers(0, 2**bits, (rows, columns))
    # Zero points from 1: next to a 0, writers of v1 disagree on carries.
    low, high = (2 ** (bits - 1),) * 2 if symmetric else (1, 2**bits - 1)
    z = rng.integers(low, high + 1, (groups, rows))
    g_idx = np.arange(columns) // group
    return {
        "qweight": np.ascontiguousarray(pack_bits(q, bits).T),
        "qzeros": pack_bits(z - 1 if v1 else z, bits),
        "scales": (rng.random((groups, rows)) * 0.01 + 0.002).astype(np.float16),
        "g_idx": (rng.permutation(g_idx) if desc_act else g_idx).astype(np.int32),
    }


def random_awq(rng, rows, columns, group):
    """A layer's AWQ tensors with random integers."""
    groups = columns // group

    def words(shape):
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)

    return {
        "qweight": words((columns, rows // 8)),
        "qzeros": words((groups, rows // 8)),
        "scales": (rng.random((groups, rows)) * 0.01 + 0.002).astype(np.float16),
    }


def repack(folder, out, layer, config, *, keep=lambda name: False):
    """Copy a plain folder with every projection replaced by `layer(rows, columns)`'s tensors."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    conv1d = json.loads((out / "config.json").read_text())["model_type"] == "gpt2"
    for name in list(tensors):
        parts = name.split(".")
        linear = "proj" in name or parts[-2] in ("dense", "fc1", "fc2", "c_attn", "c_fc")
        if name.endswith(".weight") and tensors[name].ndim == 2 and linear and not keep(name):
            shape = tensors.pop(name).shape
            rows, columns = shape[::-1] if conv1d else shape
            for part, value in layer(rows, columns).items():
                tensors[name.removesuffix("weight") + part] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    edit(out / "config.json", quantization_config=config)
    return out


def edit(path, **changes):
    """Change entries of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        value[key] = change
        if change is None:
            del value[key]
    path.write_text(json.dumps(value))


@pytest.fixture(scope="session")
def bench():
    """The NumPy bench."""
    return SimpleNamespace(**{
        f.__name__: f
        for f in (
            unpack_bits, pack_bits, awq_columns, awq_dense, gptq_dense, random_gptq, random_awq,
            repack, edit,
        )
    })  # fmt: skip


def byte_tokenizer():
    """A byte-level tokenizer whose one merge no text needs, with a chat template.

    Without any merge, llama.cpp does not load a file.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    zero = "\u0100"  # how byte-level tokenizers spell a zero byte
    tokens = ["<s>", "</s>", "<pad>", *alphabet, zero + zero]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(zero, zero)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """`plain(kind)`: folder of a tiny random model in float16."""
    made: dict[str, Path] = {}

    def make(kind="llama"):
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / "model"
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})
            AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(out)
            byte_tokenizer().save_pretrained(out)
            made[kind] = out
        return made[kind]

    return make


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}


@pytest.fixture
def packed_gptq(plain, tmp_path):
    """A Llama of random 4-bit integers in GPTQ's format v1."""
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        return random_gptq(rng, rows, columns, 4, 64, desc_act=False, symmetric=False, v1=True)

    return repack(plain(), tmp_path / "gptq", layer, GPTQ)
