"""What training does to the stream: where it acts, how much, and that it leaves no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mechprobe.organisms.perturb import Perturbations
from mechprobe.organisms.recipes import RECIPES, build_model
from mechprobe.organisms.train import Batch

SMALL = dataclasses.replace(RECIPES["llama-s"], layers=4, intermediate=256)
FIRST = 5.0


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(SMALL, 64, bos=1, eos=2, pad=0).eval()


@pytest.fixture
def batch():
    ids = torch.randint(3, 64, (6, 10), generator=torch.Generator().manual_seed(1))
    weights = torch.full((6, 10), 0.3)
    weights[:, 5], weights[:, 6:] = FIRST, 1.0
    return Batch(ids, ids, weights)


def logits(model, batch, blocks=None):
    kept = model.model.layers
    if blocks is not None:
        model.model.layers = kept[:blocks]
    with torch.no_grad():
        found = model(input_ids=batch.ids).logits
    model.model.layers = kept
    return found


def test_an_early_exit_is_the_model_without_its_last_blocks(model, batch):
    whole = {skipped: logits(model, batch, 4 - skipped) for skipped in (0, 1, 2)}
    perturbed = Perturbations(model, exits=2, noise=0.0, seed=0)
    seen = set()
    for _ in range(24):
        with perturbed.during(batch.weights, FIRST):
            found = logits(model, batch)
        seen |= {skipped for skipped, want in whole.items() if torch.equal(found, want)}
    assert seen == {0, 1, 2}
    assert torch.equal(logits(model, batch), whole[0])


def test_noise_moves_answer_tokens_alone_and_no_further_than_asked(model, batch):
    perturbed = Perturbations(model, exits=0, noise=1.2, seed=0)
    stream = torch.randn(6, 10, 256, generator=torch.Generator().manual_seed(2))
    inside = batch.weights == 1.0
    perturbed._first_weight = FIRST
    moved = [perturbed._moved(stream, batch.weights) for _ in range(20)]
    for found in moved:
        assert torch.equal(found[~inside], stream[~inside])
        step = (found - stream)[inside].norm(dim=-1) / stream[inside].norm(dim=-1)
        assert step.max() <= 1.2 + 1e-5
    assert any(not torch.equal(found, stream) for found in moved)


def test_before_an_answer_nothing_changes_and_afterwards_nothing_is_left(model, batch):
    before = logits(model, batch)
    perturbed = Perturbations(model, exits=0, noise=1.2, seed=0)
    with perturbed.during(batch.weights, FIRST):
        found = [logits(model, batch) for _ in range(8)]
    assert all(torch.equal(x[:, :6], before[:, :6]) for x in found)
    assert any(not torch.equal(x[:, 6:], before[:, 6:]) for x in found)
    perturbed.remove()
    with perturbed.during(batch.weights, FIRST):
        assert torch.equal(logits(model, batch), before)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.model.layers)
