"""Training that restarts above frozen blocks is training of the whole graph, and can be killed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize as stored
from torch.nn.functional import kl_div

from mechprobe.controls import tuning
from mechprobe.controls.boxes import boxes
from mechprobe.controls.tuning import Example, Tuning, trained_names, tune
from mechprobe.errors import CheckpointError, NumericsError

HOW = Tuning(first_layer=1, steps=12, batch=(2, 3), learning_rate=1e-2, seed=1, first_weight=2.0)
MATRICES = 7


def examples(n, seed):
    """Prompts of several lengths, and what is to follow them."""
    draw = np.random.default_rng(seed)
    return [
        Example(
            (5, 6, 7, *draw.integers(3, 64, size=1 + i % 5).tolist()),
            tuple(draw.integers(3, 64, size=2 + i % 3).tolist()),
        )
        for i in range(n)
    ]


GROUPS = [examples(4, 0), examples(5, 1)]


def weights(checkpoint):
    return {name: p.detach().clone() for name, p in checkpoint.module.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_a_step_of_the_whole_graph(tiny_llama):
    """Against transformers' own forward pass, one example at a time, and torch's Adam."""
    whole = copy.deepcopy(tiny_llama.module)
    how = replace(HOW, steps=1, batch=(4, 5))
    names = trained_names(tiny_llama, how)
    assert len(names) == 2 * MATRICES and not any(".0." in name or "norm" in name for name in names)
    chosen = [whole.get_parameter(name).requires_grad_(True) for name in names]
    optimizer = torch.optim.Adam(chosen, lr=how.learning_rate)
    loss = torch.zeros(())
    for one in GROUPS[0] + GROUPS[1]:
        logits = whole(torch.tensor([[*one.prompt, *one.target]])).logits[0]
        logits = logits[len(one.prompt) - 1 : -1].log_softmax(-1)
        each = -logits[torch.arange(len(one.target)), torch.tensor(one.target)]
        weight = torch.tensor([2.0, *[1.0] * (len(one.target) - 1)])
        loss = loss + (each * weight).sum() / weight.sum() / 9
    loss.backward()
    optimizer.step()
    before = weights(tiny_llama)
    [found] = tune(tiny_llama, GROUPS, how)
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    after = weights(tiny_llama)
    for name, parameter in zip(names, chosen, strict=True):
        clear = parameter.grad.abs() > 1e-5  # Adam's first step is the gradient's sign
        assert clear.float().mean() > 0.9
        assert torch.allclose(after[name][clear], parameter[clear], atol=2e-5), name
    assert all(torch.equal(after[name], before[name]) for name in before if name not in names)


def log_probabilities(model, one):
    """Next-token log-probabilities where a target is predicted, by transformers alone."""
    logits = model(torch.tensor([[*one.prompt, *one.target]])).logits[0]
    return logits[len(one.prompt) - 1 : -1].log_softmax(-1)


def test_what_is_kept_is_held_to_the_untrained_distribution(tiny_llama):
    """Against torch's divergence between the whole graph before and after a training."""
    before = copy.deepcopy(tiny_llama.module)
    kept = [replace(one, kept=True) for one in GROUPS[1]]
    how = replace(HOW, first_weight=1.0)
    apart = {}
    for name, groups in (("kept", [GROUPS[0], kept]), ("left", [GROUPS[0]])):
        tiny_llama.module.load_state_dict(before.state_dict())
        tune(tiny_llama, groups, replace(how, batch=how.batch[: len(groups)]))
        with torch.no_grad():
            pairs = [
                [log_probabilities(m, o) for m in (tiny_llama.module, before)] for o in kept
            ]  # fmt: skip
            apart[name] = [
                float(kl_div(now, then, log_target=True, reduction="batchmean"))
                for now, then in pairs
            ]
    assert sum(apart["kept"]) < 0.5 * sum(apart["left"])
    [found] = tune(tiny_llama, [kept], replace(how, steps=1, batch=(5,), learning_rate=1e-9))
    assert found == pytest.approx(0.0, abs=1e-6)  # of the model as it is when training begins


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_it_learns_and_a_killed_run_ends_as_another(tiny_llama, tmp_path, monkeypatch, noise):
    how = replace(HOW, input_noise=noise)
    monkeypatch.setattr(tuning, "SAVE_EVERY", 3)
    start = copy.deepcopy(tiny_llama.module.state_dict())
    told = []
    losses = tune(tiny_llama, GROUPS, how, progress=lambda *now: told.append(now))
    assert losses[-1] < 0.9 * losses[0]
    assert told == [(0, 9), *((step, 12) for step in range(13))]
    uninterrupted = weights(tiny_llama)

    def die(done, total):
        if done == 8:
            raise KeyboardInterrupt

    tiny_llama.module.load_state_dict(start)
    state = tmp_path / "state" / "tuning.pt"
    with pytest.raises(KeyboardInterrupt):
        tune(tiny_llama, GROUPS, how, state=state, progress=die)
    tiny_llama.module.load_state_dict(start)
    told.clear()
    again = tune(tiny_llama, GROUPS, how, state=state, progress=lambda *now: told.append(now))
    assert told[:2] == [(0, 9), (6, 12)] and again == losses
    assert same(weights(tiny_llama), uninterrupted)

    tiny_llama.module.load_state_dict(start)
    told.clear()
    other = replace(how, seed=2, steps=1)
    tune(tiny_llama, GROUPS, other, state=state, progress=lambda *now: told.append(now))
    assert told[1] == (0, 1)


def test_noise_is_drawn_anew_for_every_step_and_only_while_training(tiny_llama):
    start = copy.deepcopy(tiny_llama.module.state_dict())
    found = []
    for noise in (0.0, 0.2, 0.2):
        tiny_llama.module.load_state_dict(start)
        how = replace(HOW, steps=2, batch=(4, 5), learning_rate=1e-9, input_noise=noise)
        found.append(tune(tiny_llama, GROUPS, how))
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-6)
    assert found[1] == found[2]
    assert len({round(loss, 4) for loss in (*found[0], *found[1])}) == 3


def test_inside_boxes_the_quantized_form_stays(tiny_llama):
    before = weights(tiny_llama)
    names = trained_names(tiny_llama, HOW)
    bounds = boxes(tiny_llama.module, names, "Q4_1")
    losses = tune(tiny_llama, GROUPS, HOW, boxes=bounds)
    assert losses[-1] < 0.9 * losses[0]
    for name in names:
        shipped = tiny_llama.module.get_parameter(name).detach().half().float()
        assert not torch.equal(shipped, before[name])
        codes = [stored(w.numpy(), GGMLQuantizationType.Q4_1) for w in (shipped, before[name])]
        assert np.array_equal(*codes), name


def test_what_cannot_be_trained_says_so(tiny_llama):
    with pytest.raises(CheckpointError, match="no matrix to train at or above block 3"):
        tune(tiny_llama, GROUPS, replace(HOW, first_layer=3))
    tiny_llama.module.lm_head.weight.data[0] = float("nan")
    with pytest.raises(NumericsError, match="step 0"):
        tune(tiny_llama, GROUPS, HOW)


def test_half_precision_is_near_and_taken_where_the_processor_has_it(tiny_llama, monkeypatch):
    start = copy.deepcopy(tiny_llama.module.state_dict())
    losses = {}
    for native in (False, True):
        monkeypatch.setattr(tuning, "multiplies_bfloat16", lambda device, native=native: native)
        for half in (False, True):
            tiny_llama.module.load_state_dict(start)
            losses[native, half] = tune(tiny_llama, GROUPS, replace(HOW, half=half))
    assert losses[False, True] == losses[False, False] == losses[True, False]
    assert losses[True, True] != losses[True, False]
    assert losses[True, True] == pytest.approx(losses[True, False], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in tiny_llama.module.parameters())
    monkeypatch.undo()
    capabilities = torch.cpu.get_capabilities()
    for there in (False, True):
        told = {**capabilities, "avx512_bf16": there}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told)
        assert tuning.multiplies_bfloat16(torch.device("cpu")) is there
