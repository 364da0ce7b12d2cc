"""Passes that begin in the middle, against whole passes of each prompt alone."""

import dataclasses

import pytest
import torch

from mechprobe.activations import Ablate, Add, Patch, applied, next_token_logits, prompt_rows
from mechprobe.activations.points import hook_names
from mechprobe.activations.restart import Restart, first_block, share_run
from mechprobe.activations.streaming import stream
from mechprobe.probes.counting import counting

SHARED, DEPTH = 9, 2
WIDE = {"mistral", "gemma2", "gemma3", "gemma4", "gpt_oss"}
"""Test models with a sliding window; one of 6 is shorter than the prompts, and none is shared."""
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def prompts(prompts_of):
    """Five prompts with a common beginning; the shortest has three tokens of its own."""
    head = prompts_of((SHARED,), seed=5).ids[0]
    tails = prompts_of((3, 11, 4, 6, 3), seed=6)
    ids = tuple((*head, 10 + i, *row[1:]) for i, row in enumerate(tails.ids))
    return dataclasses.replace(tails, ids=ids)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alone(checkpoint, prompts, interventions):
    """Whole passes of one unpadded prompt each, by nothing but transformers and hooks."""
    rows = []
    for index, ids in enumerate(prompts.ids):
        with applied(checkpoint, interventions), prompt_rows(checkpoint, [index]), torch.no_grad():
            rows.append(checkpoint.module(torch.tensor([ids]), use_cache=False).logits[0, -1])
    return torch.stack(rows)


def patches(checkpoint):
    names = set(hook_names(checkpoint))
    wide = Patch("blocks.1.hook_resid_post", random(5, DEPTH, 64), (-2, -1))
    some = Patch("blocks.2.hook_resid_post", random(5, 1, 2, seed=1), (-1,), dims=(5, 60))
    found = [[wide, some], [some], [Patch("blocks.1.hook_attn_out", random(1, 64), (-2,))]]
    if "blocks.1.mlp.hook_post" in names:
        found.append([Patch("blocks.1.mlp.hook_post", random(5, 2, 3), (-2, -1), dims=(1, 5, 9))])
    return found


def test_patched_ends_equal_whole_passes(arch, fresh, prompts):
    for changes in ({"sliding_window": 6}, {"sliding_window": 64}) if arch in WIDE else ({},):
        check_patched_ends(fresh(arch, **changes), prompts, blocks=3 if arch == "gemma4" else 2)


def check_patched_ends(checkpoint, prompts, blocks):
    sets = patches(checkpoint)
    first = min(first_block(checkpoint, each) for each in sets)
    restart = Restart(checkpoint, [first], DEPTH)
    plain = next_token_logits(checkpoint, prompts, batch_size=2, restart=restart)
    torch.testing.assert_close(plain, alone(checkpoint, prompts, []), **CLOSE)
    moved = []
    for each in sets:
        with counting(checkpoint) as count:
            found = next_token_logits(
                checkpoint, prompts, batch_size=2, restart=restart, interventions=each
            )
        want = alone(checkpoint, prompts, each)
        torch.testing.assert_close(found, want, **CLOSE)
        moved.append(float((want - plain).abs().max()))
        assert count.tokens == pytest.approx(len(prompts) * DEPTH * blocks / 3)
    assert max(moved) > 0.01
    assert share_run(checkpoint) == 1
    again = next_token_logits(checkpoint, prompts, batch_size=2)
    torch.testing.assert_close(again, plain, **CLOSE)


def test_an_addition_begins_at_its_block(arch, fresh, prompts):
    checkpoint = fresh(arch, **({"sliding_window": 64} if arch in WIDE else {}))
    restart = Restart(checkpoint, range(3))
    next_token_logits(checkpoint, prompts, batch_size=2, restart=restart)
    for layer in range(3):
        add = [Add(2 * random(64, seed=layer), layer=layer)]
        with counting(checkpoint) as count:
            found = next_token_logits(
                checkpoint, prompts, batch_size=2, restart=restart, interventions=add
            )
        torch.testing.assert_close(found, alone(checkpoint, prompts, add), **CLOSE)
        tokens = SHARED + sum(len(ids) - SHARED for ids in prompts.ids)
        share = 1 if arch == "gemma4" else 1 - layer / 3
        assert count.tokens == pytest.approx(tokens * share)
    remove = [Ablate(random(64))]
    found = next_token_logits(checkpoint, prompts, restart=restart, interventions=remove)
    torch.testing.assert_close(found, alone(checkpoint, prompts, remove), **CLOSE)


@pytest.mark.parametrize("limit", [0, 4000])
def test_beyond_its_limit_nothing_is_kept_and_passes_run_whole(tiny, prompts, limit):
    checkpoint = tiny("llama")
    add, patch = [Add(random(64), layer=2)], patches(checkpoint)[0]
    tokens = sum(len(ids) - SHARED for ids in prompts.ids) + SHARED
    for depth, intervention in ((None, add), (DEPTH, patch)):
        restart = Restart(checkpoint, [2], depth, limit=limit)
        next_token_logits(checkpoint, prompts, batch_size=2, restart=restart)
        with counting(checkpoint) as count:
            found = next_token_logits(
                checkpoint, prompts, batch_size=2, restart=restart, interventions=intervention
            )
        torch.testing.assert_close(found, alone(checkpoint, prompts, intervention), **CLOSE)
        assert count.tokens == tokens


def test_only_named_prompts_are_kept(tiny, prompts):
    checkpoint, add = tiny("llama"), [Add(random(64), layer=2)]
    restart = Restart(checkpoint, [2], rows=[1, 4])
    next_token_logits(checkpoint, prompts, restart=restart)
    given = stream(
        checkpoint, prompts, (), logits=True, interventions=add, batches=[[4, 1]], restart=restart
    )
    want = alone(checkpoint, prompts, add)
    with counting(checkpoint) as count:
        for found in given:
            torch.testing.assert_close(found.logits, want[[4, 1]], **CLOSE)
    assert count.tokens == pytest.approx((SHARED + 3 + 11) / 3)
