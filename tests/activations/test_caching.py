"""run_with_cache: batched equals single, in the order of the prompts, padding shown as NaN."""

import pytest
import torch

from mechprobe.activations import Ablate, next_token_logits, run_with_cache
from mechprobe.activations.points import hook_names
from mechprobe.errors import HookNameError, NumericsError, PromptFileError

LENGTHS = (5, 12, 9, 3)


def test_batched_equals_single_at_every_hook_point(arch, tiny, prompts_of):
    checkpoint, prompts = tiny(arch), prompts_of(LENGTHS)
    logits, cache = run_with_cache(checkpoint, prompts, "*", positions="all")
    assert list(cache) == hook_names(checkpoint)
    assert cache.positions == tuple(range(-12, 0))
    for row, length in enumerate(LENGTHS):
        one = torch.tensor([prompts.ids[row]])
        torch.testing.assert_close(
            logits[row], checkpoint.module(input_ids=one).logits[0, -1], rtol=1e-5, atol=1e-5
        )
        _, alone = run_with_cache(checkpoint, prompts.select([row]), "*", positions="all")
        for name in cache:
            got, wanted = cache[name][row], alone[name][0]
            assert wanted.shape[0] == length
            # where values are in the tens (olmo2's MLP), float32's own sums are 1e-5 apart
            near = max(1e-5, 1e-6 * float(wanted.abs().max()))
            torch.testing.assert_close(got[-length:], wanted, rtol=1e-5, atol=near)
            assert bool(got[:-length].isnan().all())


def test_neither_batch_size_nor_order_matters(tiny, prompts_of):
    checkpoint, prompts = tiny("mistral"), prompts_of((7, 4, 10, 6, 9, 4, 8))
    names = ["blocks.*.hook_resid_post", "blocks.1.mlp.hook_post"]
    logits, cache = run_with_cache(checkpoint, prompts, names, positions=[-3, -1])
    for size in (1, 3):
        again, other = run_with_cache(
            checkpoint, prompts, names, positions=[-3, -1], batch_size=size
        )
        torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)
        for name in cache:
            assert cache[name].shape[:2] == (7, 2)
            torch.testing.assert_close(other[name], cache[name], rtol=1e-5, atol=1e-5)
    order = [3, 0, 6, 2]
    some, picked = run_with_cache(checkpoint, prompts.select(order), names, positions=[-3, -1])
    torch.testing.assert_close(some, logits[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(picked[names[1]], cache[names[1]][order], rtol=1e-5, atol=1e-5)


def test_a_common_prefix_changes_nothing(tiny, prompts_of):
    checkpoint, tails = tiny("qwen2"), prompts_of((5, 9, 4))
    head = prompts_of((20,), seed=9).ids[0]
    joined = prompts_of((1, 1, 1))
    joined = type(joined)(
        tuple(head + tail for tail in tails.ids), tails.texts, tails.pieces, 1, "raw"
    )
    assert joined.common_prefix() >= 20
    logits, cache = run_with_cache(checkpoint, joined, "blocks.*.hook_resid_post")
    for row, ids in enumerate(joined.ids):
        out = checkpoint.module(input_ids=torch.tensor([ids]), output_hidden_states=True)
        torch.testing.assert_close(logits[row], out.logits[0, -1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            cache["blocks.1.hook_resid_post"][row, 0],
            out.hidden_states[2][0, -1],
            rtol=1e-5,
            atol=1e-5,
        )


def test_next_token_logits_are_those_of_run_with_cache(tiny, prompts_of):
    checkpoint, prompts = tiny("gpt2"), prompts_of((6, 3, 8))
    remove = Ablate(torch.arange(64.0) + 1)
    for interventions in ((), (remove,)):
        logits, _ = run_with_cache(checkpoint, prompts, "hook_embed", interventions=interventions)
        found = next_token_logits(checkpoint, prompts, interventions=interventions)
        assert torch.equal(found, logits)
        assert found.dtype == torch.float32


def test_a_half_precision_model_gives_its_own_dtype_and_float32_logits(fresh, prompts_of):
    checkpoint = fresh("llama")
    checkpoint.module.to(torch.bfloat16)
    logits, cache = run_with_cache(checkpoint, prompts_of((4, 6)), "blocks.0.hook_resid_pre")
    assert logits.dtype == torch.float32
    assert cache["blocks.0.hook_resid_pre"].dtype == torch.bfloat16


def test_bad_requests(tiny, fresh, prompts_of):
    prompts = prompts_of((6, 3, 8))
    with pytest.raises(HookNameError, match="position -4 lies before the start of prompt 1"):
        run_with_cache(tiny("llama"), prompts, "hook_embed", positions=[-4, -1])
    for empty in (run_with_cache, next_token_logits):
        with pytest.raises(PromptFileError, match="no prompts"):
            empty(tiny("llama"), prompts.select([]), *(["*"] if empty is run_with_cache else []))
    broken = fresh("llama")
    broken.module.lm_head.weight[7] = float("inf")
    with pytest.raises(NumericsError, match="logits"):
        next_token_logits(broken, prompts)


def test_the_cache_shows_what_it_holds(tiny, prompts_of):
    _, cache = run_with_cache(tiny("llama"), prompts_of((4, 6)), "blocks.*.hook_resid_post")
    assert repr(cache).splitlines() == [
        "ActivationCache(3 points)",
        *(f"  blocks.{i}.hook_resid_post: (2, 1, 64)" for i in range(3)),
    ]
