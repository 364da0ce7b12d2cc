"""The recorder: the right tensors, nothing else changed, no waste."""

import pytest
import torch

from mechprobe.activations.forward import last_logits, recorder, take_positions
from mechprobe.activations.points import resolve_points
from mechprobe.errors import HookNameError, NumericsError


def record_all(checkpoint, ids, names="*", positions="all"):
    with recorder(checkpoint, resolve_points(checkpoint, names), positions) as record:
        record.forward(input_ids=ids)
        return dict(record.values)


@pytest.fixture
def ids(prompts_of):
    return torch.tensor(prompts_of((9, 9)).ids)


def test_residual_points_equal_transformers_hidden_states(arch, tiny, ids):
    checkpoint = tiny(arch)
    found = record_all(checkpoint, ids)
    states = checkpoint.module(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(states) == 4
    for layer in range(3):
        assert torch.equal(found[f"blocks.{layer}.hook_resid_pre"], states[layer])
    for layer in range(2):
        assert torch.equal(found[f"blocks.{layer}.hook_resid_post"], states[layer + 1])
    # transformers gives the last state after the final norm
    assert torch.equal(found["ln_final.hook_out"], states[3])


def test_the_final_norm_reads_the_last_residual(arch, tiny, ids):
    checkpoint = tiny(arch)
    found = record_all(checkpoint, ids)
    norm = next(p for p in resolve_points(checkpoint, "ln_final.*")).module
    again = checkpoint.module.get_submodule(norm)(found["blocks.2.hook_resid_post"])
    assert torch.equal(again, found["ln_final.hook_out"])


def test_output_projections_read_z_and_neurons(arch, tiny, ids):
    """hook_z through o_proj is the attention's output; hook_post through the down projection."""
    checkpoint = tiny(arch)
    row = checkpoint.architecture
    points = {p.name: p for p in resolve_points(checkpoint, "*")}
    for kind, module in (("attn.hook_z", row.attn), ("mlp.hook_post", row.mlp)):
        name = f"blocks.1.{kind}"
        if name not in points:
            continue
        projection = points[name].module
        whole = projection.rsplit(".", 1)[0]
        assert whole.endswith(module)
        found = record_all(checkpoint, ids, [name, f"{whole}:out"])
        again = checkpoint.module.get_submodule(projection)(found[name])
        assert torch.equal(again, found[f"{whole}:out"])
        assert found[name].shape[-1] == points[name].width


def test_the_embedding_is_what_transformer_lens_calls_it(tiny, ids):
    for name, factor in (("llama", 1.0), ("gemma2", 8.0), ("granite", 3.0), ("gpt2", 1.0)):
        checkpoint = tiny(name)
        found = record_all(checkpoint, ids, ["hook_embed", "blocks.0.hook_resid_pre"])
        table = checkpoint.module.get_input_embeddings().weight
        torch.testing.assert_close(found["hook_embed"], table[ids] * factor, rtol=1e-6, atol=0)
        same = torch.equal(found["hook_embed"], found["blocks.0.hook_resid_pre"])
        assert same == (name != "gpt2")


def test_hooked_logits_equal_unhooked(arch, tiny, ids):
    checkpoint = tiny(arch)
    bare = checkpoint.module(input_ids=ids).logits
    points = resolve_points(checkpoint, "*")
    with recorder(checkpoint, points, "all", stop=False) as record:
        assert torch.equal(record.forward(input_ids=ids).logits, bare)
    assert torch.equal(checkpoint.module(input_ids=ids).logits, bare)


def test_only_the_last_logits_are_computed_and_all_positions_are_seen(arch, tiny, ids):
    checkpoint = tiny(arch)
    points = resolve_points(checkpoint, "blocks.2.hook_resid_post")
    with recorder(checkpoint, points, "all", stop=False) as record:
        logits = last_logits(checkpoint, record, {"input_ids": ids})
        assert record.values["blocks.2.hook_resid_post"].shape == (2, 9, 64)
    assert logits.shape == (2, 128)
    torch.testing.assert_close(
        logits, checkpoint.module(input_ids=ids).logits[:, -1], rtol=1e-4, atol=1e-5
    )


def test_the_pass_stops_after_the_last_point_needed(arch, tiny, ids):
    checkpoint = tiny(arch)
    ran = []
    blocks = [p.module for p in resolve_points(checkpoint, "blocks.*.hook_resid_pre")]
    handles = [
        checkpoint.module.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: ran.append(path)
        )
        for path in blocks
    ]
    try:
        record_all(checkpoint, ids, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
        assert ran == blocks[:1]
        record_all(checkpoint, ids, "ln_final.hook_out")
        assert ran[1:] == blocks
    finally:
        for handle in handles:
            handle.remove()
    # a stopped pass leaves nothing behind
    states = checkpoint.module(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(states) == 4


@pytest.mark.parametrize("positions", [(-1,), (-3, -2, -1), (-4, -3), (-1, -4), (-9,), None])
def test_positions_are_copied_and_nothing_more_is_kept(positions):
    x = torch.arange(2 * 9 * 4.0).reshape(2, 9, 4)
    taken = take_positions(x, positions)
    wanted = x if positions is None else torch.stack([x[:, 9 + p] for p in positions], dim=1)
    assert torch.equal(taken, wanted)
    assert taken.untyped_storage().nbytes() == taken.numel() * 4
    assert taken.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("positions", [[0], [-1, -1], [], [-2, 3], "first"])
def test_positions_that_make_no_sense(tiny, positions):
    points = resolve_points(tiny("llama"), "hook_embed")
    with (
        pytest.raises(HookNameError, match="positions"),
        recorder(tiny("llama"), points, positions),
    ):
        pass


def test_a_position_before_the_prompt(tiny, ids):
    with pytest.raises(HookNameError, match="position -10 was asked for, but only 9"):
        record_all(tiny("llama"), ids, "blocks.*.hook_resid_pre", [-10, -1])


def test_a_raw_path_without_an_activation(tiny, ids):
    with pytest.raises(HookNameError, match=r"experts:in: no tensor of shape"):
        record_all(tiny("qwen3_moe"), ids, "model.layers.0.mlp.experts:in")


def test_damage_is_named_by_place(fresh, ids):
    checkpoint = fresh("llama")
    checkpoint.module.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    points = resolve_points(checkpoint, "blocks.*.hook_resid_*")
    with recorder(checkpoint, points) as record:
        record.forward(input_ids=ids)
        with pytest.raises(NumericsError, match=r"at blocks\.1\.hook_resid_post \(layer 1\)"):
            record.check_finite()


def test_recording_removes_its_own_hooks_alone(tiny, ids):
    checkpoint = tiny("llama")
    block = checkpoint.module.model.layers[1]
    seen = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    before = dict(block._forward_hooks)
    try:
        record_all(checkpoint, ids)
        assert dict(block._forward_hooks) == before
        assert len(seen) == 1
    finally:
        handle.remove()
