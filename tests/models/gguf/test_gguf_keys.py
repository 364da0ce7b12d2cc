"""Metadata as llama.cpp's converter and older writers leave them: dense is llama.cpp, or refuses.

Each file is one of ours with other keys; llama.cpp, which reads the same file, is the reference.
"""

import sys
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from gguf_copy import copy_gguf

LIVELY = 1.5
TEXT = np.random.default_rng(2).integers(3, 310, size=60).tolist()


def rekeyed(path, out, changes):
    """A copy whose architecture's keys are changed; None drops one."""
    name = read_gguf(path).architecture
    return copy_gguf(path, out, keys={f"{name}.{key}": value for key, value in changes.items()})


@cache
def dense_logprobs(path):
    model = load_gguf_dense(path, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return model(torch.tensor([TEXT])).logits[0, -1].double().log_softmax(-1).numpy()


def native_logprobs(path):
    with LlamaCppEngine(path, load_gguf_tokenizer(path), parallel=1) as engine:
        return engine.next_token_logprobs([TEXT])[0].astype(np.float64)


SCALED = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
SCALED |= {"rope.scaling.original_context_length": 64}
EQUAL = [
    # an explicit factor of attention: the converter's key, which llama.cpp reads for others alone
    ("qwen2", SCALED | {"rope.scaling.yarn_attn_factor": 1.5}, True),
    ("qwen2", SCALED | {"rope.scaling.attn_factor": 1.5}, True),
    ("qwen2", SCALED | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
     True),
    ("llama", SCALED | {"rope.scaling.yarn_log_multiplier": 0.5}, True),
    ("llama", SCALED | {"rope.scaling.original_context_length": None}, True),
    # scaling is linear where no type is given, also under its old name
    ("llama", {"rope.scaling.factor": 4.0}, True),
    ("llama", {"rope.scale_linear": 4.0}, True),
    ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, False),
    ("llama", {"attention.sliding_window": 8}, False),
    ("phi3", {"attention.sliding_window": 8}, False),
    ("phi3_longrope", {"rope.scaling.attn_factor": None}, True),
    ("phi3_longrope", {"rope.scaling.type": None}, False),
    ("gemma2", {"attention.sliding_window_pattern": 0}, True),
    ("gemma2", {"attention.sliding_window_pattern": [False, True]}, True),
    ("gemma2", {"attn_logit_softcapping": 3.0}, True),
    ("gemma3", {"attention.sliding_window": None}, True),
    ("gemma3", {"attention.sliding_window": 0}, True),
    ("gemma3", {"attention.sliding_window_pattern": 3}, True),
    ("gemma3", {"attention.sliding_window_pattern": 0}, True),
    ("gemma3", {"rope.freq_base_swa": None}, False),
    ("gemma3", SCALED, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "matters"), EQUAL)
def test_dense_reads_a_key_as_llama_cpp_does(tiny_gguf, tmp_path, name, changes, matters):
    original = tiny_gguf(name, "F16", LIVELY)
    path = rekeyed(original, tmp_path / "m.gguf", changes)
    dense, native = dense_logprobs(path), native_logprobs(path)
    assert (np.exp(dense) * (dense - native)).sum() < 1e-5
    before = dense_logprobs(original)
    assert bool(np.abs(before - dense).max() > 1e-3) is matters


REFUSED = [
    ("llama", {"rope.scaling.attn_factor": 1.5}, r"rope\.scaling\.attn_factor 1\.5 without YaRN"),
    ("gemma3", SCALED | {"rope.scaling.attn_factor": 1.5}, r"rope\.scaling\.attn_factor"),
    ("phi3_longrope", {"rope.scaling.factor": 2.0}, r"rope\.scaling\.factor 2 \(longrope\)"),
    ("llama_other_bands", {"rope.scaling.factor": 2.0}, r"rope\.scaling\.factor 2 \(linear\)"),
    ("llama", {"rope.dimension_count": 32}, r"rope\.dimension_count 32 of 64"),
    ("llama", {"attention.value_length": 32}, r"attention\.value_length"),
    ("llama", {"attention.causal": False}, r"attention\.causal"),
    ("olmo2", {"attention.sliding_window": 8}, r"attention\.sliding_window"),
    ("granite", {"rope.scaling.finetuned": False}, r"rope\.scaling\.finetuned"),
    ("gemma2", {"rope.freq_base_swa": 5e5}, r"rope\.freq_base_swa"),
]


@pytest.mark.parametrize(("name", "changes", "key"), REFUSED)
def test_what_the_graph_cannot_express_is_named(tiny_gguf, tmp_path, name, changes, key):
    path = rekeyed(tiny_gguf(name, "F16", LIVELY), tmp_path / "m.gguf", changes)
    with pytest.raises(ArchitectureError, match=key):
        load_gguf_dense(path, dtype=torch.float32, device="cpu")


def test_keys_that_llama_cpp_leaves_alone_are_named(tiny_gguf, tmp_path):
    ours = tiny_gguf("qwen2_yarn", "F16", LIVELY)
    assert read_gguf_info(ours).notes == ()
    keys = {"rope.scaling.yarn_attn_factor": 1.5, "rope.scaling.yarn_beta_fast": 32.0}
    said = read_gguf_info(rekeyed(ours, tmp_path / "m.gguf", keys)).notes
    assert [note.split(",")[0] for note in said] == ["rope.scaling.yarn_attn_factor is 1.5"]
    default = 0.1 * np.log(4.0) + 1.0  # what llama.cpp takes and the key may repeat
    repeated = {"rope.scaling.yarn_attn_factor": float(default)}
    assert read_gguf_info(rekeyed(ours, tmp_path / "same.gguf", repeated)).notes == ()
    phi = rekeyed(tiny_gguf("phi3", "F16", LIVELY), tmp_path / "p.gguf",
                  {"attention.sliding_window": 2047})  # fmt: skip
    assert "attention.sliding_window is 2047" in read_gguf_info(phi).notes[0]


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_key_of_another_type_is_one_line(tiny_gguf, tmp_path, key):
    path = rekeyed(tiny_gguf("llama", "F16", LIVELY), tmp_path / "m.gguf", {key: "four"})
    with pytest.raises(CheckpointError, match=f"llama.{key}: input should be a valid number"):
        read_gguf_info(path)


@pytest.mark.parametrize(
    ("name", "changes", "assertion"),
    [
        ("llama", {"attention.layer_norm_rms_epsilon": -1.0}, r"eps >= 0\.0f"),
        ("qwen2", {"rope.dimension_count": 4}, "n_embd_head == n_rot"),
    ],
)
def test_an_assertion_of_llama_cpp_is_one_line_and_no_end_of_the_run(
    tiny_gguf, tmp_path, name, changes, assertion
):
    file = rekeyed(tiny_gguf(name), tmp_path / "bad.gguf", changes)
    with pytest.raises(
        CheckpointError, match=rf"llama\.cpp cannot run it: GGML_ASSERT\({assertion}"
    ):
        LlamaCppEngine(file, load_gguf_tokenizer(file))


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("gemma3n", {"activation_sparsity_scale": [1.6, 1.6, 0.0]}),
        ("mamba", {"feed_forward_length": 0, "attention.head_count": 0}),
        ("rwkv7", {"attention.head_count": 0}),
        ("nemotron_h_moe", {"expert_used_count": [0, 6], "attention.head_count_kv": [0, 2]}),
    ],
)
def test_what_llama_cpps_converter_writes_for_other_architectures_is_no_damage(
    tmp_path, architecture, keys
):
    """Values from its `conversion/`: one for each layer, and 0 where there is no attention."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    for key, value in keys.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = read_gguf(tmp_path / "m.gguf")
    assert {key: file.get(key) for key in keys} == {
        key: pytest.approx(value) for key, value in keys.items()
    }


@pytest.mark.parametrize("heads", [0, [4, 0]])
def test_no_heads_where_the_graph_has_some_is_damage(tiny_gguf, tmp_path, heads):
    path = rekeyed(
        tiny_gguf("llama", "F16", LIVELY), tmp_path / "m.gguf", {"attention.head_count": heads}
    )
    with pytest.raises(CheckpointError, match=r"llama\.attention\.head_count: input should be"):
        read_gguf_info(path)
