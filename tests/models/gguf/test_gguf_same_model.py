"""What is written as GGUF computes what transformers computes of the folder, or is refused.

The reference of every comparison is `from_pretrained` on the folder, in float32.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mechprobe.errors import ArchitectureError, CheckpointError, CheckpointWarning
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models import gguf_check, gguf_config
from mechprobe.models.gguf_check import compare_with_source
from mechprobe.models.gguf_config import metadata_from_config
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_fields import known_fields
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_names import ARCHITECTURES, architecture_of_model
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.hf import read_config
from mechprobe.models.quantize import quantize

LIVELY = 1.5
TEXT = np.random.default_rng(1).integers(3, 310, size=60).tolist()
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64}
BANDS = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
BANDS |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128}
LONG |= {f"{span}_factor": [1.0 + i / 8 for i in range(32)] for span in ("long", "short")}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
WINDOW |= {"layer_types": None}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """`folder(name, **changes)`: a copy of a tiny model whose config says something else."""

    def make(name, **changes):
        out = shutil.copytree(tiny_folder(name, LIVELY), tmp_path / name)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | changes))
        return out

    return make


def edited(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def logprobs(model):
    with torch.no_grad():
        return model(torch.tensor([TEXT])).logits[0, -1].double().log_softmax(-1).numpy()


def assert_same_model(folder, path):
    """Transformers on the folder, the dense file, and llama.cpp in this process."""
    source = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = logprobs(source.eval())
    dense = logprobs(load_gguf_dense(path, dtype=torch.float32, device="cpu"))
    assert np.abs(expected - dense).max() < 1e-5
    with LlamaCppEngine(path, load_gguf_tokenizer(path)) as engine:
        native = engine.next_token_logprobs([TEXT])[0].astype(np.float64)
    assert (np.exp(expected) * (expected - native)).sum() < 1e-5


def test_an_own_head_beside_a_promise_to_tie(folder, tmp_path):
    """transformers 5 keeps both when they differ; without the head, logits are off by 8."""
    own = folder("llama", tie_word_embeddings=True)
    path = write_f16_gguf(own, tmp_path / "m.gguf")
    assert_same_model(own, path)
    tensors = load_file(own / "model.safetensors")
    written = load_gguf_dense(path, dtype=torch.float32, device="cpu").lm_head.weight
    assert torch.equal(written, tensors["lm_head.weight"])
    quantized = quantize(str(own), "Q8_0", tmp_path / "q.gguf")
    assert "output.weight" in read_gguf(quantized).tensors


@pytest.mark.usefixtures("without_comparison")
@pytest.mark.parametrize("name", ["llama_tied_llama3_rope", "gemma2", "gpt2"])
@pytest.mark.parametrize("stored", ["head", "both"])
def test_tied_weights_under_either_name(folder, tmp_path, name, stored):
    def move(weights):
        key = next(k for k in weights if "embed_tokens" in k or "wte" in k)
        weights["lm_head.weight"] = weights[key].clone()
        if stored == "head":
            del weights[key]

    tied = edited(folder(name), move)
    path = write_f16_gguf(tied, tmp_path / "m.gguf")
    assert_same_model(tied, path)
    assert "output.weight" not in read_gguf(path).tensors


@pytest.mark.usefixtures("without_comparison")
@pytest.mark.parametrize("name", ["phi", "olmo2", "gpt_neox"])
def test_llama_cpp_has_the_tied_head_it_wants(folder, tmp_path, name):
    def tie(weights):
        del weights["embed_out.weight" if name == "gpt_neox" else "lm_head.weight"]
        key = next(k for k in weights if "embed" in k)
        weights[key] *= 0.0625

    tied = edited(folder(name, tie_word_embeddings=True), tie)
    assert_same_model(tied, write_f16_gguf(tied, tmp_path / "m.gguf"))


def test_what_transformers_would_draw_at_random(folder, tmp_path):
    lost = edited(folder("llama"), lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"the output matrix is not among the weights"):
        write_f16_gguf(lost, tmp_path / "m.gguf")
    lost = edited(folder("qwen2"), lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 tensors .* missing, the first blk\.1\.ffn_up"):
        write_f16_gguf(lost, tmp_path / "m.gguf")


def test_a_head_that_llama_cpps_gemma2_has_no_place_for(folder, tmp_path):
    own = edited(
        folder("gemma2"),
        lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].flip(0).clone()}),
    )
    with pytest.raises(ArchitectureError, match="tie_word_embeddings: the output matrix is not"):
        write_f16_gguf(own, tmp_path / "m.gguf")


CARRIED = [
    ("qwen2", {"rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.7}}),
    ("qwen2", {"rope_parameters": YARN | {"attention_factor": 1.5}}),
    ("llama", {"rope_parameters": YARN | {"attention_factor": 1.0, "beta_fast": 32}}),
    ("gpt_neox", {"rope_parameters": YARN | {"partial_rotary_factor": 0.25}}),
    ("gemma2", {"rope_parameters": YARN | {"attention_factor": 0.5}}),
    ("gemma3", {"rope_parameters": {"full_attention": YARN, "sliding_attention": LOCAL}}),
    ("gemma3", {"layer_types": ["full_attention"] * 7}),
    ("gemma3", {"final_logit_softcapping": 5.0}),
    ("gemma2", {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}),
    ("granite", {"rope_parameters": BANDS}),
    ("phi3_longrope", {"rope_parameters": LONG | {"factor": 8.0}}),
    ("phi3", {"rope_parameters": LOCAL | {"partial_rotary_factor": 0.5}}),
    ("mistral", {"sliding_window": 256}),
    ("qwen2", WINDOW | {"max_window_layers": 2}),
]


@pytest.mark.usefixtures("without_comparison")
@pytest.mark.parametrize(("name", "changes"), CARRIED)
def test_what_a_gguf_carries(folder, tmp_path, name, changes):
    source = folder(name, **changes)
    assert_same_model(source, write_f16_gguf(source, tmp_path / "m.gguf"))


REFUSED = [
    ("mistral", {"sliding_window": 8}, "sliding_window: 8"),
    ("phi3", {"sliding_window": 8}, "sliding_window: 8"),
    ("qwen2", WINDOW, "sliding_window: 8"),
    ("qwen3", WINDOW, "sliding_window: 8"),
    ("smollm3", WINDOW | {"layer_types": ["sliding_attention"] * 4}, "sliding_window: 8"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("qwen3", {"hidden_act": "relu"}, "hidden_act: 'relu'"),
    ("phi", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("phi3", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("olmo2", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("granite", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("smollm3", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ("gpt_neox", {"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new'"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation: 'gelu'"),
    ("gemma3", {"hidden_activation": "silu"}, "hidden_activation: 'silu'"),
    ("gpt2", {"activation_function": "relu"}, "activation_function: 'relu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar: 100"),
    ("gemma3", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar: 100"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("gemma3", {"layer_types": ["sliding_attention"] * 7}, "layer_types"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping: None"),
    ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping: None"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers: \[1, 0, 1, 0\]"),
    ("qwen3", {"attention_bias": True}, "attention_bias: True"),
    ("olmo2", {"attention_bias": True}, "attention_bias: True"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias: True"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias: False"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm: True"),
    ("qwen2", {"rope_parameters": YARN | {"truncate": False}}, "rope_parameters.truncate: False"),
    ("qwen2", {"rope_parameters": YARN | {"beta_fast": 8}}, "rope_parameters.beta_fast: 8"),
    ("qwen2", {"rope_parameters": BANDS}, "rope_parameters.rope_type: 'llama3'"),
    ("smollm3", {"rope_parameters": BANDS}, "rope_parameters.rope_type: 'llama3'"),
    ("llama", {"rope_parameters": LONG}, "rope_parameters.rope_type: 'longrope'"),
    ("llama", {"rope_parameters": YARN | {"rope_type": "dynamic"}}, "rope_type: 'dynamic'"),
    ("llama", {"rope_parameters": LOCAL | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    (
        "gemma3",
        {"rope_parameters": {"full_attention": YARN | {"attention_factor": 1.5},
                             "sliding_attention": LOCAL}},
        "rope_parameters.attention_factor: 1.5",
    ),
    (
        "gemma3",
        {"rope_parameters": {"full_attention": LOCAL,
                             "sliding_attention": {"rope_type": "linear", "factor": 2.0,
                                                   "rope_theta": 1e4}}},
        "rope_parameters.sliding_attention.rope_type: 'linear'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "field"), REFUSED)
def test_what_a_gguf_cannot_carry_is_refused_by_name(tiny_folder, name, changes, field):
    written = json.loads((tiny_folder(name, LIVELY) / "config.json").read_text())
    config = transformers.AutoConfig.for_model(**written | changes)
    with pytest.raises(ArchitectureError, match=f"a GGUF would be another model: .*{field}"):
        metadata_from_config(config, architecture_of_model(config.model_type))


def test_a_refusal_says_where_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(ArchitectureError, match=r"mistral: a GGUF would .*; measure the folder"):
        quantize(str(folder("mistral", sliding_window=8)), "Q8_0", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["mistral"]


@pytest.mark.parametrize(
    "kind", [kind for architecture in ARCHITECTURES for kind in architecture.model_types]
)
def test_every_field_of_a_config_is_carried_assumed_or_inert(kind):
    """A new field of a newer transformers is refused where it is used, and has to be sorted in."""
    name = next(a.name for a in ARCHITECTURES if kind in a.model_types)
    assert {*transformers.AutoConfig.for_model(kind).to_dict()} <= known_fields(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": 8}, r"dense is 0\.\d+ .* it may be sliding_window: 8"),
        ("llama", {"hidden_act": "gelu"}, r"dense is 0\.0\d+ .* it may be hidden_act: 'gelu'"),
        ("gpt_neox", {"attention_bias": False}, "no place for the tensor"),
        ("qwen3", {"attention_bias": True}, "it may be attention_bias: True"),
    ],
)
def test_the_logits_show_what_the_table_would_miss(
    folder, tmp_path, monkeypatch, name, changes, message
):
    monkeypatch.setattr(gguf_config, "require_carried", lambda *_: None)
    source = folder(name, **changes)
    if name == "qwen3":
        bias = {f"model.layers.{i}.self_attn.{p}_proj.bias": n for i in (0, 1) for p, n in WIDTHS}
        edited(source, lambda w: w.update({k: torch.randn(n) for k, n in bias.items()}))
    with pytest.raises(CheckpointError, match=message):
        write_f16_gguf(source, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


WIDTHS = [("q", 384), ("k", 192), ("v", 192), ("o", 256)]


def test_a_field_that_no_config_class_declares(folder, tmp_path):
    """Qwen2's attention takes a head width from the config all the same; llama.cpp's does not."""
    source = folder("qwen2", head_dim=32)

    def narrow(weights):
        for key in [k for k in weights if "self_attn" in k]:
            rows = weights[key]
            half = rows[:, : rows.shape[1] // 2] if "o_proj" in key else rows[: len(rows) // 2]
            weights[key] = half.contiguous()

    with pytest.raises(CheckpointError, match=r"cannot run it: .*attn_q.*; it may be head_dim: 32"):
        write_f16_gguf(edited(source, narrow), tmp_path / "m.gguf")


def test_the_comparison_is_recorded(folder, tmp_path):
    source = folder("gemma3")
    write_f16_gguf(source, tmp_path / "m.gguf")
    record = json.loads((tmp_path / "m.gguf.json").read_text())
    compared = record["compared"]
    assert record["writer"] == "mechprobe (gguf)" and compared["notes"] == []
    assert compared["dense"] < 1e-6 and compared["llama_cpp"] < 3 * compared["rounding"] < 0.01
    quantized = quantize(str(source), "Q8_0", tmp_path / "q.gguf")
    assert json.loads(quantized.with_name("q.gguf.json").read_text())["f16"] == record


@pytest.mark.parametrize("original", [64, 255, 256])
def test_longrope_is_compared_with_the_factors_that_llama_cpp_takes(
    folder, tmp_path, monkeypatch, original
):
    """Its smallest context, 256, is beyond a smaller original one: the text is too."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {f"{span}_factor": [n + i / 8 for i in range(32)] for span, n in SPANS}
    rope["original_max_position_embeddings"] = original
    source = folder(
        "phi3_longrope", rope_parameters=rope, original_max_position_embeddings=original
    )
    file = write_f16_gguf(source, tmp_path / "m.gguf")
    found = compare_with_source(file, source)
    assert (found.tokens, found.notes) == (original + 32, ())
    assert found.llama_cpp < 3 * found.rounding
    texts, _ = gguf_check._texts(read_config(source, trust_remote_code=False), read_gguf(file))
    assert list(map(len, texts)) == [original + 32] if original < 256 else [64, original + 32]
    if original == 256:  # as of a model too large for the second text
        monkeypatch.setattr(gguf_check, "_LONGEST", 64)
        monkeypatch.setattr(gguf_check, "_WORK", 0)
        said = "the text of 64 tokens does not reach LongRoPE's long factors, which begin past 256"
        assert compare_with_source(file, source).notes == (said,)


def test_other_long_factors_are_refused_past_the_original_context(folder, tmp_path):
    """All that the file and the folder differ in shows past 256 tokens alone."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {f"{span}_factor": [n + i / 8 for i in range(32)] for span, n in SPANS}
    rope["original_max_position_embeddings"] = 256
    source = folder("phi3_longrope", rope_parameters=rope, original_max_position_embeddings=256)
    file = write_f16_gguf(source, tmp_path / "m.gguf")
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["long_factor"] = [9.0 + i / 8 for i in range(32)]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="over 288 tokens"):
        compare_with_source(file, source)


SPANS = [("short", 1.0), ("long", 3.0)]


def test_a_long_window_is_reached_by_the_text_of_a_small_model(folder, tmp_path, monkeypatch):
    source = folder("gemma3", sliding_window=700, max_position_embeddings=1024)
    file = write_f16_gguf(source, tmp_path / "m.gguf")
    found = compare_with_source(file, source)
    assert (found.tokens, found.notes) == (732, ())
    assert found.llama_cpp < 3 * found.rounding
    monkeypatch.setattr(gguf_check, "_WORK", 0)  # as of a model too large for it
    said = "the text of 64 tokens does not reach the sliding window of 700"
    assert compare_with_source(file, source).notes == (said,)


def test_what_cannot_be_compared_is_said(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ArchitectureError("no graph computes this")

    source = folder("gemma2")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_check, "_dense_logits", refuse)
        found = compare_with_source(write_f16_gguf(source, tmp_path / "m.gguf"), source)
    assert found.dense is None and found.llama_cpp is not None
    assert found.notes == ("dense: not compared: no graph computes this",)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    with pytest.warns(CheckpointWarning, match="not compared with its source: that takes"):
        write_f16_gguf(source, tmp_path / "m.gguf")
    assert json.loads((tmp_path / "m.gguf.json").read_text())["compared"]["dense"] is None


def test_a_packed_folder_is_no_source(folder, tmp_path):
    packed = folder("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        CheckpointError, match="is GPTQ already; make a GGUF from the 16-bit folder"
    ):
        write_f16_gguf(packed, tmp_path / "m.gguf")
