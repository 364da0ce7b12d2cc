import dataclasses

import pytest
import torch

from mechprobe.activations.batching import pad_batch, padded_batches
from mechprobe.activations.forward import last_logits, recorder
from mechprobe.activations.interventions import Ablate, Add, applied
from mechprobe.activations.points import resolve_points
from mechprobe.activations.prefix import MIN_TOKENS, Sharing, compute_prefix, plan_sharing
from mechprobe.activations.streaming import sharing_for, stream
from mechprobe.models.rendering import EncodedPrompts

OWN = (3, 11, 1, 6, 1)
SHARED = 9
WIDE = {"mistral", "gemma2", "gemma3", "gemma4", "gpt_oss"}
"""Test models whose sliding window of 6 must be widened before anything is shared."""


@pytest.fixture
def prompts(prompts_of) -> EncodedPrompts:
    return with_prefix(prompts_of, SHARED, OWN)


def with_prefix(prompts_of, shared: int, own: tuple[int, ...]) -> EncodedPrompts:
    head = prompts_of((shared,), seed=5).ids[0]
    tails = prompts_of(own, seed=6)
    # First own tokens differ, so that the common prefix is exactly the head.
    ids = tuple((*head, 10 + i, *row[1:]) for i, row in enumerate(tails.ids))
    return dataclasses.replace(tails, ids=ids)


def checkpoint_of(fresh, arch):
    return fresh(arch, sliding_window=64) if arch in WIDE else fresh(arch)


def alone(checkpoint, prompts, points):
    """Each prompt by itself, unpadded, by nothing but transformers and the recorder."""
    with recorder(checkpoint, points, "last", stop=False) as record:
        rows, logits = [], []
        for ids in prompts.ids:
            out = record.forward(input_ids=torch.tensor([ids]), use_cache=False)
            rows.append(dict(record.values))
            logits.append(out.logits[0, -1])
    return {p.name: torch.cat([row[p.name] for row in rows]) for p in points}, torch.stack(logits)


def test_shared_equals_alone_at_every_point(arch, fresh, prompts):
    checkpoint = checkpoint_of(fresh, arch)
    points = resolve_points(checkpoint, "*")
    want, want_logits = alone(checkpoint, prompts, points)
    assert sharing_for(checkpoint, prompts, (-1,)) == Sharing(SHARED)
    seen = []
    with torch.no_grad():
        for got in stream(checkpoint, prompts, points, batch_size=2, logits=True):
            rows = list(got.indices)
            seen += rows
            for name, value in got.values.items():
                scale = max(1.0, float(want[name].abs().max()))
                assert float((value - want[name][rows]).abs().max()) <= 1e-5 * scale, name
            assert float((got.logits - want_logits[rows]).abs().max()) <= 1e-5 * max(
                1.0, float(want_logits.abs().max())
            )
    assert sorted(seen) == list(range(len(prompts)))


def test_the_cache_is_not_changed_by_the_batches_that_use_it(tiny, prompts):
    checkpoint = tiny("llama")
    cache = compute_prefix(checkpoint.module, prompts.ids[0][:SHARED])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    results = []
    for _ in range(2):
        batch = pad_batch(prompts, (0, 1, 3), 0, prefix=SHARED)
        with recorder(checkpoint, (), stop=False) as record:
            inputs = {**batch.model_inputs(), "past_key_values": cache}
            results.append(last_logits(checkpoint, record, inputs))
    assert torch.equal(*results)
    assert cache.get_seq_length() == SHARED
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert layer.keys.shape[0] == 1
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)


@pytest.mark.parametrize(
    "intervention",
    [
        Ablate(torch.arange(64.0) - 20),
        Add(torch.linspace(-1, 2, 64), layer=1, coeff=3.0),
    ],
    ids=["ablate", "add"],
)
def test_the_prefix_is_computed_under_the_active_interventions(tiny, prompts, intervention):
    checkpoint = tiny("qwen2")
    points = resolve_points(checkpoint, "blocks.*.hook_resid_post")
    plain, _ = alone(checkpoint, prompts, points)
    with applied(checkpoint, [intervention]):
        want, _ = alone(checkpoint, prompts, points)
        outer = list(stream(checkpoint, prompts, points, batch_size=3))
    inner = list(stream(checkpoint, prompts, points, batch_size=3, interventions=[intervention]))
    after = list(stream(checkpoint, prompts, points, batch_size=3))
    last = "blocks.2.hook_resid_post"
    assert float((want[last] - plain[last]).abs().max()) > 0.1  # the control moves
    for found, expected in ((outer, want), (inner, want), (after, plain)):
        for got in found:
            for name, value in got.values.items():
                torch.testing.assert_close(
                    value, expected[name][list(got.indices)], rtol=1e-5, atol=1e-5
                )


def test_a_window_shorter_than_the_prompts_forbids_sharing(fresh, prompts):
    for arch in sorted(WIDE):
        config = fresh(arch).module.config
        sharing = plan_sharing(config, prompts, 1)
        assert sharing.tokens == 0
        assert sharing.note == (
            f"prefix of {SHARED} tokens not shared: the longest prompt has 20 tokens and the "
            "sliding window 6"
        )


def test_sharing_past_the_window_would_be_wrong(fresh, prompts):
    """The reason for the rule above: without it, padded rows lose what the window should show."""
    checkpoint = fresh("gpt_oss", sliding_window=12)
    _, want = alone(checkpoint, prompts, ())
    cache = compute_prefix(checkpoint.module, prompts.ids[0][:SHARED])
    batch = pad_batch(prompts, (0, 1), 0, prefix=SHARED)
    with recorder(checkpoint, (), stop=False) as record:
        inputs = {**batch.model_inputs(), "past_key_values": cache}
        got = last_logits(checkpoint, record, inputs)
    assert float((got[0] - want[0]).abs().max()) > 1e-3


def test_batches_past_the_window_are_right_without_sharing(fresh, prompts):
    for arch in sorted(WIDE):
        checkpoint = fresh(arch)
        _, want = alone(checkpoint, prompts, ())
        for got in stream(checkpoint, prompts, (), logits=True, batch_size=5):
            torch.testing.assert_close(got.logits, want[list(got.indices)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "tokens"), [(1, 9), (2, 8), (5, 5), (6, MIN_TOKENS), (7, 0), (10, 0), (None, 0)]
)
def test_the_shared_part_ends_before_the_positions_asked_for(tiny, prompts, depth, tokens):
    assert plan_sharing(tiny("llama").module.config, prompts, depth).tokens == tokens


def test_deep_positions_with_a_shortened_prefix_equal_alone(tiny, prompts):
    checkpoint = tiny("gpt2")
    points = resolve_points(checkpoint, "blocks.*.hook_resid_pre")
    places = (-6, -1, -3)
    with recorder(checkpoint, points, places) as record:
        want = []
        for ids in prompts.ids:
            record.forward(input_ids=torch.tensor([ids]))
            want.append(dict(record.values))
    assert sharing_for(checkpoint, prompts, places).tokens == MIN_TOKENS
    for got in stream(checkpoint, prompts, points, places, batch_size=2):
        for row, index in enumerate(got.indices):
            for name, value in got.values.items():
                torch.testing.assert_close(value[row], want[index][name][0], rtol=1e-5, atol=1e-5)


def test_rotary_frequencies_that_follow_the_length_forbid_sharing(fresh, prompts):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = fresh("llama", max_position_embeddings=16, rope_parameters=rope).module.config
    assert "rotary frequencies change within 20 tokens" in plan_sharing(config, prompts, 1).note
    config = fresh("llama", max_position_embeddings=32, rope_parameters=rope).module.config
    assert plan_sharing(config, prompts, 1) == Sharing(SHARED)


def test_other_attention_kernels_are_left_alone(fresh, prompts):
    model = fresh("llama").module
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in plan_sharing(model.config, prompts, 1).note


def test_tokens_saved(tiny, prompts):
    """The batches carry the own tokens alone."""
    shared = sum(b.input_ids.numel() for b in padded_batches(prompts, 1, 0, prefix=SHARED))
    assert shared == sum(OWN)
