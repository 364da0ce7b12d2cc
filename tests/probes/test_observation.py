"""One pass for all probes, against plain forward passes of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechprobe.errors import ParityError, PromptFileError, StoreError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import heldout_requests
from mechprobe.probes.observation import Need, Observation, merge_needs, observe

POINT = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def prompts(checkpoint):
    rows = heldout_requests(6, seed=2)
    return {
        f"evaluate/{label}": encode(
            checkpoint.tokenizer, [row.text for row in rows if row.label == label]
        )
        for label in ("harmful", "harmless")
    }


@pytest.fixture(scope="module")
def observed(checkpoint, prompts, tmp_path_factory):
    needs = [
        Need("evaluate/harmful", ("blocks.*.hook_resid_pre",), (-2, -1)),
        Need("evaluate/harmful", logits=True),
        Need("evaluate/harmless", logits=True),
    ]
    return observe(checkpoint, prompts, needs, tmp_path_factory.mktemp("cell"))


def test_it_equals_a_plain_forward_pass(checkpoint, prompts, observed):
    for row, ids in enumerate(prompts["evaluate/harmful"]):
        with torch.no_grad():
            out = checkpoint.module(torch.tensor([ids]), output_hidden_states=True)
        expected = out.hidden_states[1][0, -2:].numpy()
        found = observed.values("evaluate/harmful", POINT, (-2, -1))[row]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(
            observed.logits("evaluate/harmful")[row], out.logits[0, -1].numpy(), atol=1e-4
        )
    assert observed.logits("evaluate/harmful").dtype == np.float64


def test_it_is_read_again_from_disk_without_a_model(observed):
    again = Observation.open(observed.path)
    assert again.facts == observed.facts
    assert again.prompt_sets == ("evaluate/harmful", "evaluate/harmless")
    np.testing.assert_array_equal(
        again.last("evaluate/harmful", POINT), observed.last("evaluate/harmful", POINT)
    )


def test_forward_tokens_count_the_shared_prefix_once(prompts, observed):
    expected = 0
    for name in observed.prompt_sets:
        ids = prompts[name].ids
        shared = observed.store(name).plan.prefix
        assert len({row[:shared] for row in ids}) == 1
        expected += shared + sum(len(row) - shared for row in ids)
    assert observed.facts.forward_tokens == expected


def test_needs_are_merged():
    merged = merge_needs(
        [Need("b", ("x",), (-1,)), Need("a", logits=True), Need("b", ("x", "y"), (-3, -1))]
    )
    assert merged == (Need("a", (), (-1,), True), Need("b", ("x", "y"), (-3, -1), False))


def test_what_it_refuses(checkpoint, prompts, observed, tmp_path):
    with pytest.raises(PromptFileError, match="are needed"):
        observe(checkpoint, prompts, [Need("fit/harmful", logits=True)], tmp_path / "a")
    twice = {"a/x": prompts["evaluate/harmful"], "b/x": prompts["evaluate/harmful"]}
    with pytest.raises(PromptFileError, match="both in a/x and in b/x"):
        observe(checkpoint, twice, [Need("a/x", logits=True), Need("b/x", logits=True)], tmp_path)
    with pytest.raises(StoreError, match="no finished observation"):
        Observation.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"positions \[-4\] were not observed"):
        observed.values("evaluate/harmful", POINT, (-4,))
    fewer = {"evaluate/harmful": prompts["evaluate/harmful"].select(range(3))}
    other = observe(checkpoint, fewer, [Need("evaluate/harmful", logits=True)], tmp_path / "b")
    with pytest.raises(ParityError):
        other.require_parity(observed, "evaluate/harmful")


def test_a_damaged_shard_says_what_to_delete(checkpoint, prompts, tmp_path):
    found = observe(
        checkpoint, prompts, [Need("evaluate/harmful", logits=True)], tmp_path / "observation"
    )
    shard = found.store("evaluate/harmful").shard_path(0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=f"delete the folder {tmp_path}/observation and run the"):
        found.logits("evaluate/harmful")
    shard.unlink()
    with pytest.raises(StoreError, match="delete the folder"):
        found.logits("evaluate/harmful")
