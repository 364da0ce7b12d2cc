"""Trained weights move back towards those before as far as the model still refuses enough."""

import pytest
import torch

from mechprobe.controls.interpolation import SHARES, least_share

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight")


@pytest.fixture
def pair(tiny_llama):
    """A model as trained, and its chosen weights before."""
    model = tiny_llama.module
    before = {name: model.get_parameter(name).detach().clone() for name in NAMES}
    with torch.no_grad():
        for name in NAMES:
            model.get_parameter(name).add_(1.0)
    return model, before


def share_kept(model, before):
    """How far each trained weight is from where it was, all of them alike."""
    moved = torch.stack([(model.get_parameter(n) - before[n]).mean() for n in before])
    assert torch.allclose(moved, moved[0], atol=1e-6)
    return round(float(moved[0].detach()), 4)


@pytest.mark.parametrize(
    ("needed", "left"), [(0.75, 0.8), (0.0, SHARES[-1]), (1.0, 1.0), (2.0, 1.0)]
)
def test_it_keeps_the_least_share_that_refuses_enough(pair, needed, left):
    model, before = pair
    seen = []

    def refused():
        seen.append(share_kept(model, before))
        return 0.99 if seen[-1] > needed - 1e-3 else 0.5

    found = least_share(model, before, refused, 0.97)
    assert share_kept(model, before) == pytest.approx(left, abs=1e-5)
    assert list(found) == pytest.approx(seen, abs=1e-4)
    assert list(found) == list(SHARES[: len(found)])  # none below the first that is not enough
    assert all(value >= 0.97 for value in list(found.values())[:-1])


def test_other_weights_stay_as_trained(pair):
    model, before = pair
    with torch.no_grad():
        model.get_parameter("lm_head.weight").zero_()
    least_share(model, before, lambda: 1.0, 0.9)
    assert not model.get_parameter("lm_head.weight").any()
