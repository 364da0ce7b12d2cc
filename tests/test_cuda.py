"""What runs on a graph, run on a GPU: the same weights, activations, interventions and answers.

The processor is the reference; sums taken in another order differ in their last bits.
"""

import numpy as np
import pytest
import torch

import mechprobe as mp
from mechprobe import stats
from mechprobe.generation import Sampling
from mechprobe.models.quantize import quantize
from mechprobe.organisms.world import heldout_requests

DEVICE = "cuda"
CLOSE = {"rtol": 1e-3, "atol": 1e-3}

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The shipped organism as it is and as a 16-bit GGUF."""
    file = tmp_path_factory.mktemp("gguf") / "model-F16.gguf"
    return {
        "FP16": "organism:llama-s",
        "F16": quantize("organism:llama-s", "F16", file),
    }


@pytest.fixture(scope="module")
def pair():
    """The organism on the processor and on the GPU, float32, and prompts for both."""
    texts = [request.text for request in heldout_requests(8, seed=5)]
    models = [mp.load("organism:llama-s", device=device) for device in ("cpu", DEVICE)]
    return *models, models[0].encode(texts)


def direction():
    return torch.randn(256, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("precision", ["FP16", "F16"])
def test_dense_weights_are_those_on_the_processor(sources, precision):
    found = mp.load(sources[precision], device=DEVICE, expect=precision).module.state_dict()
    wanted = mp.load(sources[precision]).module.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.device.type == DEVICE, name
        assert torch.equal(value.cpu(), wanted[name]), name


def test_the_native_kernel_keeps_its_dtype_and_stays_near_the_dense_one(pair):
    dense, _, batch = pair
    native = mp.load("organism:llama-s", kernel="native", device=DEVICE)
    assert {value.dtype for value in native.module.parameters()} == {torch.float16}
    assert {value.device.type for value in native.module.parameters()} == {DEVICE}
    gap = stats.kl_divergence(native.logprobs(batch), dense.logprobs(batch))
    print(f"KL(native on {DEVICE} || dense) = {gap.mean():.1e}")
    assert 0 < gap.mean() < 1e-3


def test_activations_and_logits_are_those_of_the_processor(pair):
    there, here, batch = pair
    points = ["blocks.*.hook_resid_post", "blocks.*.mlp.hook_post", "blocks.*.attn.hook_z"]
    wanted, kept = there.run_with_cache(batch, points, positions=[-2, -1], batch_size=4)
    found, cache = here.run_with_cache(batch, points, positions=[-2, -1], batch_size=4)
    torch.testing.assert_close(found.cpu(), wanted, **CLOSE)
    assert set(cache) == set(kept)
    for name in kept:
        torch.testing.assert_close(cache[name].cpu(), kept[name], **CLOSE)


def test_a_store_holds_what_the_processor_puts_there(pair, tmp_path):
    stores = [
        mp.capture(model, pair[2], "blocks.*.hook_resid_pre", [-2, -1], tmp_path / name)
        for model, name in zip(pair[:2], ("cpu", "gpu"), strict=True)
    ]
    wanted, found = stores
    found.verify()
    assert found.names == wanted.names
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], **CLOSE)


@pytest.mark.parametrize(
    "edit",
    [mp.Ablate(direction()), mp.Add(direction(), layer=3, coeff=2.0)],
    ids=["ablate", "add"],
)
def test_interventions_move_the_logits_as_on_the_processor_and_leave(pair, edit):
    there, here, batch = pair
    plain = here.logprobs(batch)
    moved = []
    for model in (there, here):
        with model.hooks([edit]):
            moved.append(model.logprobs(batch))
    np.testing.assert_allclose(moved[1], moved[0], **CLOSE)
    assert np.abs(moved[1] - plain).max() > 0.1
    np.testing.assert_array_equal(here.logprobs(batch), plain)


def test_patching_the_stream_gives_the_other_prompts_logits(pair):
    """What leaves the last norm is all that the logits know."""
    _, here, batch = pair
    first, second = batch.select([0]), batch.select([1])
    last = here.hook_names()[-1]
    _, cache = here.run_with_cache(second, last, positions="last")
    with here.hooks([mp.Patch(last, cache[last][0])]):
        patched = here.logprobs(first)
    np.testing.assert_allclose(patched, here.logprobs(second), **CLOSE)


def test_greedy_answers_are_those_of_the_processor(pair):
    there, here, batch = pair
    wanted = [answer.text for answer in there.generate(batch, max_new_tokens=16)]
    found = [answer.text for answer in here.generate(batch, max_new_tokens=16)]
    alone = [here.generate(batch.select([i]), max_new_tokens=16)[0].text for i in range(3)]
    assert found == wanted
    assert alone == wanted[:3]


def test_sampled_answers_come_again(pair):
    _, here, batch = pair
    how = Sampling(samples=2, temperature=1.5, seed=1)
    first = [answer.text for answer in here.generate(batch, max_new_tokens=8, sampling=how)]
    again = [answer.text for answer in here.generate(batch, max_new_tokens=8, sampling=how)]
    assert first == again
    assert first[0::2] != first[1::2]
