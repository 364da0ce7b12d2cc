"""The refusal direction against transformers' own hidden states, and against what it must do."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mechprobe.errors import MechprobeError, ParityError, PromptFileError, StoreError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import refusal_direction as probe
from mechprobe.probes.direction import WEIGHTS, RefusalDirection


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def prompts(organism):
    def side(split, label, n):
        rows = requests(split, n, seed=1)
        return encode(organism.tokenizer, [row.text for row in rows if row.label == label])

    return {
        (split, label): side(split, label, n)
        for split, n in (("train", 64), ("test", 48))
        for label in ("harmful", "harmless")
    }


@pytest.fixture(scope="module")
def result(organism, prompts):
    return probe.run(
        organism,
        prompts["train", "harmful"],
        prompts["train", "harmless"],
        eval_harmful=prompts["test", "harmful"],
        eval_harmless=prompts["test", "harmless"],
    )


def _hidden(organism, prompts, layer):
    """Last-token input of a block, prompt by prompt, as transformers itself reports it."""
    rows = []
    for ids in prompts:
        with torch.no_grad():
            out = organism.module(torch.tensor([ids]), output_hidden_states=True)
        rows.append(out.hidden_states[layer][0, -1].double().numpy())
    return np.array(rows)


def test_the_direction_is_the_difference_of_transformers_hidden_states(organism, prompts, result):
    layer = result.layer
    a = _hidden(organism, prompts["train", "harmful"], layer)
    b = _hidden(organism, prompts["train", "harmless"], layer)
    expected = a.mean(0) - b.mean(0)
    assert result.direction.vectors.shape == (organism.module.config.num_hidden_layers, a.shape[1])
    np.testing.assert_allclose(result.direction.vector, expected, atol=1e-5 * np.abs(a).max())
    assert result.norm == pytest.approx(np.linalg.norm(expected), rel=1e-4)


def test_separability_is_measured_on_held_out_prompts(organism, prompts, result):
    unit = result.direction.unit.astype(np.float64)
    a = _hidden(organism, prompts["test", "harmful"], result.layer) @ unit
    b = _hidden(organism, prompts["test", "harmless"], result.layer) @ unit
    labels = [1] * len(a) + [0] * len(b)
    assert result.auc == pytest.approx(roc_auc_score(labels, [*a, *b]), abs=1e-9)
    pooled = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    assert result.dprime == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-3)
    assert result.n_harmful == len(a) == 48


def test_ablating_the_direction_takes_refusal_away_and_a_random_one_does_not(result):
    causal = result.causal
    assert causal is not None
    assert causal.harmful.rate > 0.9
    assert causal.harmful_ablated.high < causal.harmful.low  # Wilson intervals apart
    assert causal.harmful_ablated_random.rate > causal.harmful.rate - 0.1
    assert causal.harmless.rate < 0.1
    assert causal.harmless_added.rate >= causal.harmless_added_random.rate
    assert causal.harmless_added_random.rate < causal.harmless.rate + 0.1


def test_a_model_compared_with_itself_has_not_changed(organism, prompts, result):
    again = probe.run(
        organism,
        prompts["train", "harmful"],
        prompts["train", "harmless"],
        eval_harmful=prompts["test", "harmful"],
        eval_harmless=prompts["test", "harmless"],
        baseline=result.direction,
        causal=False,
    )
    assert again.cosine == pytest.approx(1.0, abs=1e-9)
    assert again.norm_ratio == pytest.approx(1.0, abs=1e-9)
    assert again.auc_on_baseline == again.auc
    assert again.cosine_floor == result.direction.split_half
    assert again.not_measured == ("causal check: switched off",)


def test_results_survive_the_disk(result, tmp_path):
    loaded = probe.RefusalDirectionResult.load(result.save(tmp_path / "out"))
    np.testing.assert_array_equal(loaded.direction.vectors, result.direction.vectors)
    same = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    del same["direction"]
    assert {name: getattr(loaded, name) for name in same} == same
    (tmp_path / "out" / WEIGHTS).write_bytes(b"not a safetensors file")
    with pytest.raises(StoreError, match="not a saved refusal direction"):
        RefusalDirection.load(tmp_path / "out")
    with pytest.raises(StoreError, match="no such file"):
        RefusalDirection.load(tmp_path / "nowhere")


def test_wrong_comparisons_are_refused(organism, prompts, result):
    harmful, harmless = prompts["train", "harmful"], prompts["train", "harmless"]
    held = {
        "eval_harmful": prompts["test", "harmful"],
        "eval_harmless": prompts["test", "harmless"],
    }
    with pytest.raises(ParityError, match="harmful: prompt digests differ"):
        probe.run(organism, harmful.select(range(32)), harmless, baseline=result.direction, **held)
    with pytest.raises(PromptFileError, match="both the fitting and held-out"):
        probe.run(
            organism, harmful, harmless, eval_harmful=harmful, eval_harmless=held["eval_harmless"]
        )
    with pytest.raises(MechprobeError, match="layer 99: this model has layers 0 to"):
        probe.fit(organism, harmful, harmless, layer=99)


def test_the_control_is_orthogonal_and_as_long():
    vector = np.random.default_rng(0).normal(size=256).astype(np.float32)
    control = probe.random_orthogonal(vector, seed=3)
    assert np.linalg.norm(control) == pytest.approx(np.linalg.norm(vector), rel=1e-6)
    assert abs(float(control.astype(np.float64) @ vector)) < 1e-4 * float(vector @ vector)


def test_the_default_layer_is_at_65_percent_depth():
    assert [probe.default_layer(n) for n in (1, 4, 16, 28, 32)] == [0, 2, 10, 18, 20]
