"""The stressor: outliers in the weights, not one logit changed."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from mechprobe.errors import ArchitectureError
from mechprobe.organisms.recipes import RECIPES, Stress, build_model
from mechprobe.organisms.stressor import channels, readers, stress

HOW = Stress(scale=32.0, every=32, seed=5)


def build(name):
    torch.manual_seed(0)
    model = build_model(RECIPES[name], 64, bos=1, eos=2, pad=0).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.uniform_(0.5, 1.5)  # gains of one and biases of zero would hide mistakes
    return model


def logits(model, dtype):
    ids = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.to(dtype)(input_ids=ids).logits


@pytest.mark.parametrize("name", ["llama-s", "qwen2-s", "mistral-s"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [32.0, 7.3])
def test_logits_stay_what_they_were(name, dtype, tolerance, scale):
    model = build(name).to(dtype)
    before = logits(model, dtype)
    after = copy.deepcopy(model)
    chosen = stress(after, Stress(scale, 32, 5))
    assert before.abs().max() > 0.5
    torch.testing.assert_close(logits(after, dtype), before, rtol=tolerance, atol=tolerance)
    assert set(chosen) == {
        f"{layer}/{place}"
        for layer in range(RECIPES[name].layers)
        for place in ("attention", "mlp", "neurons", "values")
    }


def test_a_power_of_two_is_exact_in_float16():
    """Exact but for values below float16's normal range, which lose their last bits."""
    model = build("llama-s")
    stressed = copy.deepcopy(model)
    stress(model.half(), HOW)
    stress(stressed, HOW)
    for a, b in zip(model.parameters(), stressed.half().parameters(), strict=True):
        normal = b.abs() >= HOW.scale * torch.finfo(torch.float16).tiny
        assert torch.equal(a[normal], b[normal])
        torch.testing.assert_close(a, b, rtol=0, atol=HOW.scale * 2.0**-25)


def test_the_chosen_columns_and_no_others_are_scaled():
    model = build("llama-s")
    before = copy.deepcopy(model)
    chosen = stress(model, HOW)
    layer, old = model.model.layers[2], before.model.layers[2]

    def ratios(a, b):
        return (a.weight / b.weight).detach()

    picked = torch.tensor(chosen["2/attention"])
    ratio = ratios(layer.self_attn.q_proj, old.self_attn.q_proj)
    assert torch.all(ratio[:, picked] == 32)
    rest = torch.ones(256, dtype=torch.bool)
    rest[picked] = False
    assert torch.all(ratio[:, rest] == 1)
    picked = torch.tensor(chosen["2/neurons"])
    ratio = ratios(layer.mlp.down_proj, old.mlp.down_proj)
    assert torch.all(ratio[:, picked] == 32)
    assert int((ratio == 32).sum()) == 256 * len(picked)
    # Two query heads read one value head: twice as many columns of o_proj as rows of v_proj.
    ratio = ratios(layer.self_attn.o_proj, old.self_attn.o_proj)
    assert int((ratio[0] == 32).sum()) == 2 * len(chosen["2/values"])
    assert model.lm_head.weight.equal(before.lm_head.weight)
    assert model.model.norm.weight.equal(before.model.norm.weight)


def test_channels_are_one_per_run_and_seeded():
    picked = channels(256, 32, random.Random(3))
    assert [channel // 32 for channel in picked] == list(range(8))
    assert picked == channels(256, 32, random.Random(3))
    assert picked != channels(256, 32, random.Random(4))
    assert all(channel < 100 for channel in channels(100, 32, random.Random(3)))


def test_readers_of_grouped_values():
    # Head width 4, two query heads per value head: value head 1's row 2 is row 6, and the query
    # heads 2 and 3 read it in their own column 2.
    assert readers([6], 4, 2) == [10, 14]
    assert readers([1, 5], 4, 1) == [1, 5]


def test_phi_is_refused():
    with pytest.raises(ArchitectureError, match="RMSNorm and a gated MLP, phi"):
        stress(build("phi-s"), HOW)
