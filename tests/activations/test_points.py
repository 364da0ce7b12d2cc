"""Names of hook points: what exists, what is refused and how it is explained."""

import pytest
import transformers

from mechprobe.activations.points import hook_names, resolve_point, resolve_points
from mechprobe.errors import CheckpointError, HookNameError
from mechprobe.models.checkpoint import Checkpoint, QuantInfo

PARALLEL = {"phi", "gpt_neox_parallel"}


def test_every_architecture_has_its_points(arch, tiny):
    names = hook_names(tiny(arch))
    expected = {"hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"}
    for layer in range(3):
        here = {n.split(".", 2)[2] for n in names if n.startswith(f"blocks.{layer}.")}
        assert here >= expected | {"attn.hook_z"}
        assert ("hook_resid_mid" in here) == (arch not in PARALLEL)
        dense = arch != "gpt_oss" and (arch != "qwen3_moe" or layer == 1)
        assert ("mlp.hook_post" in here) == dense
        assert ("hook_per_layer_out" in here) == (arch == "gemma4")
    assert names[0] == "hook_embed"
    assert names[-1] == "ln_final.hook_out"


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_a_parallel_block_says_why_it_has_no_middle(tiny, name):
    for pattern in ("blocks.1.hook_resid_mid", "blocks.*.hook_resid_mid"):
        with pytest.raises(HookNameError, match="parallel block attention and MLP read the same"):
            resolve_points(tiny(name), pattern)


def test_experts_have_no_neurons_and_dense_layers_among_them_do(tiny):
    with pytest.raises(HookNameError, match="mixture of experts"):
        resolve_points(tiny("qwen3_moe"), "blocks.0.mlp.hook_post")
    assert resolve_point(tiny("qwen3_moe"), "blocks.1.mlp.hook_post").width == 96
    with pytest.raises(HookNameError, match=r"gpt_oss lacks mlp\.hook_post: .*mixture of experts"):
        resolve_points(tiny("gpt_oss"), "blocks.*.mlp.hook_post")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.1.hook_resid_pst", r"matches no hook point; near: blocks\.1\.hook_resid_post"),
        ("blocks.7.hook_resid_pre", r"no block 7; this model has blocks 0 to 2"),
        ("blocks.-1.hook_resid_pre", r"no block -1; this model has blocks 0 to 2"),
        ("blocks.*.hook_middle", r"matches no hook point"),
        ("hook_embd", r"near: hook_embed"),
        ("blocks.0.hook_per_layer_out", r"llama lacks hook_per_layer_out: only Gemma 4"),
        ("model.layers.0.self_attention:in", r"near: model\.layers\.0\.self_attn"),
        ("model.layers.0.self_attn:output", r"ends in ':in' or ':out'"),
        ([], r"no hook names were given"),
    ],
)
def test_what_matches_nothing_is_explained(tiny, pattern, message):
    with pytest.raises(HookNameError, match=message):
        resolve_points(tiny("llama"), pattern)


def test_one_bad_name_among_good_ones_is_not_dropped(tiny):
    with pytest.raises(HookNameError, match="near"):
        resolve_points(tiny("llama"), ["blocks.*.hook_resid_pre", "blocks.0.hook_rezid_pre"])


def test_points_come_once_in_order_of_computation(tiny):
    asked = ["blocks.2.hook_resid_*", "blocks.0.attn.hook_z", "blocks.2.hook_resid_post"]
    raw = "model.layers.*.mlp.up_proj:out"
    points = resolve_points(tiny("llama"), [raw, *asked])
    assert [point.name for point in points] == [
        "blocks.0.attn.hook_z",
        "blocks.2.hook_resid_pre",
        "blocks.2.hook_resid_mid",
        "blocks.2.hook_resid_post",
        *(f"model.layers.{i}.mlp.up_proj:out" for i in range(3)),
    ]


def test_widths_are_those_of_the_tensors(tiny):
    qwen = tiny("qwen3")
    assert resolve_point(qwen, "blocks.0.attn.hook_z").width == 4 * 24
    assert resolve_point(qwen, "blocks.0.mlp.hook_post").width == 96
    assert resolve_point(tiny("gpt2"), "blocks.0.mlp.hook_post").width == 4 * 64
    gemma = tiny("gemma4")
    assert [resolve_point(gemma, f"blocks.{i}.attn.hook_z").width for i in range(3)] == [
        4 * 16,
        4 * 32,
        4 * 32,
    ]


def test_a_wrapped_gemma_is_hooked_inside_its_wrapper(tmp_path):
    from mechprobe.models.architectures import architecture_for

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text | heads,
            vision_config=vision | {"num_attention_heads": 1, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=1,
        )
    ).eval()
    whole = Checkpoint(
        "gemma3", tmp_path, QuantInfo("FP32", "none"), "dense", None, "0" * 64, model,
        architecture_for(model),
    )  # fmt: skip
    point = resolve_point(whole, "blocks.1.hook_attn_out")
    assert point.module == "model.language_model.layers.1.post_attention_layernorm"

    from mechprobe.activations.check import check_architecture

    check_architecture(whole)


def test_a_native_gguf_has_no_graph(tmp_path):
    gguf = Checkpoint(
        "x.gguf", tmp_path, QuantInfo("Q4_K_M", "gguf"), "native", None, "0" * 64, None, None
    )
    with pytest.raises(CheckpointError, match=r"x\.gguf: a native GGUF has no graph .*dense"):
        hook_names(gguf)
