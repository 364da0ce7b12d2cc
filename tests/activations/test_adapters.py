"""TransformerLens and nnsight over the same weights: same numbers, and our graph left alone."""

import pytest
import torch

from mechprobe.activations import Ablate, Add, applied, hook_names, next_token_logits
from mechprobe.activations.adapters import to_nnsight, to_transformer_lens
from mechprobe.activations.forward import recorder
from mechprobe.activations.points import resolve_points
from mechprobe.behavior import load_builtin
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode

pytest.importorskip("transformer_lens")
pytest.importorskip("nnsight")

EAGER = {"rtol": 1e-4, "atol": 5e-5}
"""A bridge runs eager attention, we run SDPA: rounding differs, at a scale of about 3."""


@pytest.fixture
def ids(prompts_of):
    return torch.tensor(prompts_of((9, 9)).ids)


def record_all(checkpoint, ids):
    with recorder(checkpoint, resolve_points(checkpoint, "*"), "all") as record:
        record.forward(input_ids=ids)
        return dict(record.values)


def test_every_point_equals_transformer_lens(arch, tiny, ids):
    checkpoint = tiny(arch)
    ours = record_all(checkpoint, ids)
    _, theirs = to_transformer_lens(checkpoint).run_with_cache(ids)
    for name, x in ours.items():
        if name.endswith("hook_per_layer_out"):  # a name of our own, for Gemma 4's third term
            assert name not in theirs
            continue
        torch.testing.assert_close(theirs[name].reshape(x.shape), x, **EAGER)


def test_interventions_equal_transformer_lens_hooks(arch, tiny, fresh, prompts_of):
    """The same ablation and addition, by hand, through the other library's hooks."""
    checkpoint, prompts = tiny(arch), prompts_of((9, 9))
    if arch == "gemma4":  # the bridge cannot hook its per-layer term
        checkpoint = fresh(arch, hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    vector = torch.randn(64, generator=torch.Generator().manual_seed(7)) * 2.0
    unit = (vector / vector.norm()).double()

    def remove(x, hook):
        return (x.double() - (x.double() @ unit).unsqueeze(-1) * unit).to(x.dtype)

    writes = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
    edits = [(name, remove) for name in hook_names(checkpoint) if name.endswith(writes)]
    edits.append(("blocks.1.hook_resid_pre", lambda x, hook: x - 0.5 * vector))
    bridge = to_transformer_lens(checkpoint)
    with torch.no_grad():
        wanted = bridge.run_with_hooks(torch.tensor(prompts.ids), fwd_hooks=edits)[:, -1]
    ours = [Ablate(vector), Add(vector, 1, -0.5)]
    found = next_token_logits(checkpoint, prompts, interventions=ours)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert float((found - next_token_logits(checkpoint, prompts)).abs().max()) > 0.1


def test_a_bridge_leaves_the_checkpoint_as_it_was(tiny, ids):
    """It replaces modules and forces eager attention: on a copy of the tree, over our tensors."""
    checkpoint = tiny("llama")
    model = checkpoint.module
    modules = {path: type(module) for path, module in model.named_modules()}
    padding, attention = checkpoint.tokenizer.padding_side, model.config._attn_implementation
    before = model(input_ids=ids).logits
    bridge = to_transformer_lens(checkpoint)
    assert {path: type(module) for path, module in model.named_modules()} == modules
    assert model.config._attn_implementation == attention == "sdpa"
    assert checkpoint.tokenizer.padding_side == padding
    assert torch.equal(model(input_ids=ids).logits, before)
    ours = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in bridge.original_model.parameters()} <= ours


def test_every_point_equals_nnsight(arch, tiny, ids):
    check_nnsight(tiny(arch), ids)


def check_nnsight(checkpoint, ids):
    points = resolve_points(checkpoint, "*")
    ours = record_all(checkpoint, ids)
    model, theirs = to_nnsight(checkpoint), {}
    with torch.no_grad(), model.trace(ids):
        for point in points:
            envoy = model.get(point.module)
            if point.side == "in":
                theirs[point.name] = envoy.input.clone().save()
            else:
                out = envoy.output
                out = out[0] if isinstance(out, tuple) else out
                theirs[point.name] = out.clone().save()
    for point in points:
        assert torch.equal(theirs[point.name] * point.scale, ours[point.name]), point.name


def test_our_interventions_act_in_nnsight(tiny, ids, prompts_of):
    checkpoint, change = tiny("qwen2"), [Ablate(torch.arange(64.0) - 20)]
    model = to_nnsight(checkpoint)
    with applied(checkpoint, change), torch.no_grad(), model.trace(ids):
        found = model.output.logits[:, -1].save()
    wanted = next_token_logits(checkpoint, prompts_of((9, 9)), interventions=change)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.verify
def test_a_real_model_equals_both(smollm2_gguf):
    """SmolLM2 from its GGUF, 30 blocks: every point of four requests, relative to its own size."""
    checkpoint = load_checkpoint(smollm2_gguf)
    for row in encode(checkpoint.tokenizer, load_builtin().texts("harmful", "test")[:4]).ids:
        ids = torch.tensor([row])
        ours = record_all(checkpoint, ids)
        _, theirs = to_transformer_lens(checkpoint).run_with_cache(ids)
        assert len(ours) > 200
        for name, x in ours.items():
            apart = (theirs[name].reshape(x.shape) - x).norm() / x.norm()
            assert apart < 1e-4, name
    check_nnsight(checkpoint, ids)
