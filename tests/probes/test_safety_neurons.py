"""The whole probe on a real tiny model whose weights were rounded, against transformers."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from mechprobe.activations import Patch, applied, prompt_rows
from mechprobe.errors import ParityError, SpecError, StoreError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import safety_neurons as probe
from mechprobe.probes.neuron_errors import (
    ERRORS,
    mlp_point,
    residual_point,
    rows_of_error,
    study_layers,
)
from mechprobe.probes.neuron_patching import neuron_sets, patch_back
from mechprobe.probes.neuron_weights import factors, save_weights, weight_errors
from mechprobe.probes.observation import observe
from mechprobe.probes.refusal_tokens import refusal_log_odds

SPLITS = (("fit", "train", 32), ("select", "validation", 12), ("evaluate", "test", 24))
TOKENS = [5, 46]


@pytest.fixture(scope="module")
def base():
    """The organism's first four blocks: the last of them is a layer of the probe."""
    whole = load_checkpoint("organism:llama-s", kernel="dense")
    whole.module.model.layers = whole.module.model.layers[:4]
    whole.module.config.num_hidden_layers = 4
    return whole


@pytest.fixture(scope="module")
def prompts(base):
    def side(split, label, n):
        rows = requests(split, n, seed=3)
        return encode(base.tokenizer, [row.text for row in rows if row.label == label])

    return {
        f"{name}/{label}": side(split, label, n)
        for name, split, n in SPLITS
        for label in ("harmful", "harmless")
    }


def rounded(base):
    """The blocks' matrices to 15 levels a row; embedding, norms and head as they were."""
    module = copy.deepcopy(base.module)
    for block in module.model.layers:
        for part in block.modules():
            if isinstance(part, torch.nn.Linear):
                step = part.weight.abs().amax(dim=1, keepdim=True) / 7
                part.weight.data = (part.weight / step).round() * step
    return dataclasses.replace(base, module=module, digest="rounded")


def rescaled(base, seed=0):
    """What AWQ does before it rounds: the same function in other coordinates."""
    module = copy.deepcopy(base.module)
    draw = torch.Generator().manual_seed(seed)
    applied = []
    for block in module.model.layers:
        mlp, norm = block.mlp, block.post_attention_layernorm
        into = torch.empty(norm.weight.shape).uniform_(0.3, 3, generator=draw)
        through = torch.empty(mlp.down_proj.in_features).uniform_(0.2, 5, generator=draw)
        norm.weight.data /= into
        mlp.gate_proj.weight.data *= into
        mlp.up_proj.weight.data *= into / through[:, None]
        mlp.down_proj.weight.data *= through
        applied.append(through.double().numpy())
    quant = dataclasses.replace(base.quant, method="awq", precision="AWQ-INT4")
    return dataclasses.replace(base, module=module, quant=quant, digest="rescaled"), applied


@pytest.fixture(scope="module")
def layers(base):
    return study_layers(base.module.config.num_hidden_layers)


@pytest.fixture(scope="module")
def watch(base, prompts, tmp_path_factory):
    needs = probe.needs(
        base.module.config.num_hidden_layers, prompts["evaluate/harmful"].post_instruction
    )
    return lambda cell: observe(cell, prompts, needs, tmp_path_factory.mktemp("cell"))


@pytest.fixture(scope="module")
def seen(base, watch):
    return watch(base)


@pytest.fixture(scope="module")
def cell(base):
    return rounded(base)


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    return save_weights(base, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def result(cell, watch, seen, saved):
    return probe.measure(watch(cell), seen, weights=weight_errors(cell, saved))


def hidden(checkpoint, prompts, layer):
    rows = []
    for ids in prompts:
        with torch.no_grad():
            out = checkpoint.module(torch.tensor([ids]), output_hidden_states=True)
        rows.append(out.hidden_states[layer + 1][0, -1].double().numpy())
    return np.array(rows)


def test_the_five_layers_lie_between_20_and_80_percent():
    assert study_layers(28) == (5, 9, 14, 18, 22)
    assert study_layers(20) == (4, 7, 10, 13, 16)
    assert study_layers(4) == (0, 1, 2, 3)


def test_the_study_ratio_is_that_of_transformers_hidden_states(base, cell, prompts, result, layers):
    study = result.study
    assert study.layers == layers
    assert (study.n_error, study.n_fit) == (24, 24)
    for layer, found in list(zip(layers, study.ratios, strict=True))[:-1]:  # the last is normed
        harmful = hidden(base, prompts["evaluate/harmful"], layer)
        harmless = hidden(base, prompts["evaluate/harmless"], layer)
        error = np.abs(hidden(cell, prompts["evaluate/harmful"], layer) - harmful).mean(0)
        order = np.argsort(np.abs(harmful.mean(0) - harmless.mean(0)))
        count = round(0.05 * len(order))
        expected = error[order[-count:]].mean() / error[order[:-count]].mean()
        assert found == pytest.approx(expected, rel=1e-3)
    test = ttest_1samp(study.ratios, 1.0)
    assert study.p == pytest.approx(test.pvalue)
    assert study.mean == pytest.approx(np.mean(study.ratios))


def test_errors_are_of_fifty_prompts_at_most(base, cell, tmp_path):
    assert rows_of_error(30) == list(range(0, 30, 2))
    assert rows_of_error(140) == list(range(0, 100, 2))
    rows = requests("test", 60, seed=3)
    many = {
        f"evaluate/{label}": encode(base.tokenizer, [r.text for r in rows if r.label == label])
        for label in ("harmful", "harmless")
    }
    needs = probe.needs(base.module.config.num_hidden_layers, study=True)
    before, after = (observe(one, many, needs, tmp_path / one.digest) for one in (base, cell))
    study = probe.measure(after, before, study=True).study
    assert (study.n_error, study.n_fit) == (50, 60)
    for layer, found in zip(study.layers, study.ratios, strict=True):
        harmful, harmless = (before.last(name, residual_point(layer)) for name in many)
        error = np.abs(after.last(ERRORS, residual_point(layer)) - harmful)[:50].mean(axis=0)
        order = np.argsort(np.abs(harmful.mean(axis=0) - harmless.mean(axis=0)))
        count = round(0.05 * len(order))
        expected = error[order[-count:]].mean() / error[order[:-count]].mean()
        assert found == pytest.approx(expected, rel=1e-6)


def test_each_number_of_a_dimension_comes_from_prompts_of_its_own(base, cell, prompts, result):
    layer = result.layers[1]
    found = next(each for each in result.profiles if each.point == residual_point(layer))
    harmful = hidden(base, prompts["evaluate/harmful"], layer)
    error = np.abs(hidden(cell, prompts["evaluate/harmful"], layer) - harmful)[::2].mean(0)
    np.testing.assert_allclose(found.error, error, rtol=1e-2, atol=1e-4)
    held = np.concatenate([harmful[1::2], hidden(base, prompts["select/harmful"], layer)])
    for scale, rows in ((found.scale, held[::2]), (found.scale_again, held[1::2])):
        np.testing.assert_allclose(np.exp(scale) ** 2, (rows**2).mean(0), rtol=1e-3)
    fit = [
        hidden(base, prompts[f"fit/{label}"], layer).mean(0) for label in ("harmful", "harmless")
    ]
    np.testing.assert_allclose(found.contrast, np.abs(fit[0] - fit[1]), atol=1e-3)
    assert (result.n_error, result.n_scale, result.n_fit) == (12, 24, 32)


def test_weight_error_is_the_norm_of_the_change(base, cell, result, layers):
    layer = layers[0]
    old, new = (each.module.model.layers[layer] for each in (base, cell))

    def change(path):
        parts = (block.get_submodule(path).weight.double().numpy() for block in (new, old))
        first, second = parts
        return first - second

    into = np.hstack([change("mlp.gate_proj"), change("mlp.up_proj"), change("mlp.down_proj").T])
    write = np.hstack([change("self_attn.o_proj"), change("mlp.down_proj")])
    by_point = {each.point: each for each in result.profiles}
    np.testing.assert_allclose(
        by_point[mlp_point(layer)].weight_error, np.linalg.norm(into, axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(
        by_point[residual_point(layer)].weight_error, np.linalg.norm(write, axis=1), rtol=1e-6
    )
    assert np.ptp(by_point[mlp_point(layer)].gain) == 0


def test_rescaling_before_rounding_is_no_error(base, watch, seen, saved, prompts, layers):
    """AWQ's neurons are the baseline's, each divided by a factor: taken out, nothing is left."""
    twin, factors_of = rescaled(base)
    watched = watch(twin)
    weights = weight_errors(twin, saved)
    for layer in layers:
        found = weights[mlp_point(layer)]
        np.testing.assert_allclose(found.gain, factors_of[layer], rtol=1e-4)
        assert (found.error / found.norm).max() < 1e-3
        raw = watched.last(ERRORS, mlp_point(layer)) - seen.last(ERRORS, mlp_point(layer))
        assert np.abs(raw).mean() > 0.1 * np.abs(seen.last(ERRORS, mlp_point(layer))).mean()
    without = probe.measure(watched, seen)
    assert not without.of_kind("mlp")
    assert any("may have rescaled them" in line for line in without.not_measured)
    result = probe.measure(watched, seen, weights=weights)
    for each in result.of_kind("mlp"):
        assert (each.error / each.rms).mean() < 1e-3
    patched = probe.patch(result, twin, prompts[ERRORS], seen, TOKENS, draws=2)
    for part in patched.patching:
        assert abs(part.everything.value) < 1e-3


def test_factors_are_found_through_noise():
    rng = torch.Generator().manual_seed(1)
    base = torch.randn(300, 200, generator=rng, dtype=torch.float64)
    rows = torch.rand(300, generator=rng, dtype=torch.float64) + 0.5
    columns = torch.rand(200, generator=rng, dtype=torch.float64) + 0.5
    noise = 0.05 * torch.randn(300, 200, generator=rng, dtype=torch.float64)
    r, c = factors((base + noise) * rows[:, None] * columns, base)
    torch.testing.assert_close(r[:, None] * c, rows[:, None] * columns, rtol=0.05, atol=0)
    assert float(r.median()) == pytest.approx(1.0)


def test_the_baselines_stream_put_back_everywhere_is_the_baseline(
    base, cell, prompts, seen, result
):
    """The last block's output decides the logits, and norm and head were not rounded."""
    patched = probe.patch(result, cell, prompts[ERRORS], seen, TOKENS, draws=3)
    stream = next(part for part in patched.patching if part.kind == "residual")
    assert stream.everything.value == pytest.approx(stream.margin_lost.value, abs=1e-4)
    assert stream.positions == tuple(range(-prompts[ERRORS].post_instruction, 0))
    before = refusal_log_odds(seen.logits(ERRORS), TOKENS)
    logits = []
    for ids in prompts[ERRORS]:
        with torch.no_grad():
            logits.append(cell.module(torch.tensor([ids])).logits[0, -1].double().numpy())
    lost = (before - refusal_log_odds(np.array(logits), TOKENS)).mean()
    assert stream.margin_lost.value == pytest.approx(lost, abs=1e-3)
    assert stream.margin_lost.baseline == pytest.approx(before.mean(), abs=1e-3)
    assert 0 < abs(stream.whole.value) < abs(stream.everything.value) + 1
    n_safety = sum(int(each.safety(0.05).sum()) for each in result.of_kind("residual"))
    assert stream.n_neurons == n_safety
    assert len(stream.random) == 3
    excess = stream.excess
    assert excess.value == pytest.approx(stream.matched.value - stream.random_mean)
    # one further draw lies anywhere around the mean of three: that is in the interval
    between = np.std(stream.random, ddof=1) * np.sqrt(1 + 1 / 3)
    assert 0 < between < (excess.high - excess.low) / 2
    assert (stream.p < 0.05) == (excess.low > 0 or excess.high < 0)


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_patched_numbers_are_those_of_whole_passes_of_one_prompt(
    base, cell, prompts, seen, result, kind
):
    profiles, found = result.of_kind(kind), prompts[ERRORS]
    part = patch_back(cell, found, seen, profiles, TOKENS, draws=2, batch_size=8)
    positions = range(-found.post_instruction, 0)
    values = {
        each.point: torch.tensor(seen.values(ERRORS, each.point, positions) / each.gain).float()
        for each in profiles
    }

    def odds(neurons):
        logits = []
        patches = [
            Patch(point, values[point][..., slice(None) if dims is None else dims], positions,
                  None if dims is None else dims.tolist())
            for point, dims in neurons.items()
        ]  # fmt: skip
        for row, ids in enumerate(found.ids):
            with applied(cell, patches), prompt_rows(cell, [row]), torch.no_grad():
                logits.append(cell.module(torch.tensor([ids]), use_cache=False).logits[0, -1])
        return refusal_log_odds(torch.stack(logits).double().numpy(), TOKENS)

    sets, plain = neuron_sets(profiles, 0.05, 2, 0), odds({}).mean()
    moved = {name: odds(neurons).mean() - plain for name, neurons in sets.items()}
    assert max(map(abs, moved.values())) > 0.01
    assert part.whole.value == pytest.approx(moved["whole"], abs=1e-6)
    assert part.everything.value == pytest.approx(moved["everything"], abs=1e-6)
    for k, value in enumerate(part.random):
        assert value == pytest.approx(moved[f"random {k}"], abs=1e-6)


def test_patching_a_model_with_its_own_activations_changes_nothing(base, prompts, seen, result):
    patched = probe.patch(result, base, prompts[ERRORS], seen, TOKENS, draws=2)
    for part in patched.patching:
        for found in (part.margin_lost, part.whole, part.everything, part.matched, part.excess):
            if found is not None:
                assert (found.value, found.low, found.high) == (0, 0, 0)
                assert str(found) == "+0.000 [+0.000, +0.000]"
        assert set(part.random) <= {0.0}
        assert part.share is None and part.p is None
    lines = [line for line in patched.not_measured if "beyond rounding" in line]
    assert len(lines) == sum(part.excess is not None for part in patched.patching) > 0
    patched.plot().draw_without_rendering()


def test_results_survive_the_disk_and_are_shown(cell, prompts, seen, result, tmp_path):
    full = probe.patch(result, cell, prompts[ERRORS], seen, TOKENS, draws=2)
    again = probe.SafetyNeuronsResult.load(full.save(tmp_path / "out"))
    assert again.to_dict() == full.to_dict()
    for old, new in zip(full.profiles, again.profiles, strict=True):
        assert (old.point, old.kind, old.layer) == (new.point, new.kind, new.layer)
        for name, array in old.arrays().items():
            np.testing.assert_array_equal(array, new.arrays()[name])
    assert again.overall("residual").n_safety == full.overall("residual").n_safety
    from rich.console import Console

    console = Console(width=150, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(again)
    text = console.export_text()
    assert "study ratio, unadjusted" in text
    assert f"{full.study.mean:.2f}" in text
    figure = again.plot()
    titles = [axes.get_title() for axes in figure.axes]
    # a loss has one name and one sign, in the table and in the figure
    (panel,) = [axes for axes in figure.axes if "residual dimensions\nsafety" in axes.get_title()]
    bars = dict(zip((t.get_text() for t in panel.get_yticklabels()), panel.patches, strict=True))
    stream = again.patching[0]
    assert bars["margin lost"].get_width() == pytest.approx(stream.margin_lost.value)
    assert f"margin lost {stream.margin_lost}" in " ".join(text.split())
    assert any("cut-off" in title for title in titles)
    figure.savefig(tmp_path / "figure.png")
    for axes in figure.axes[:2]:  # once over the points that it names
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0
    (tmp_path / "out" / probe.ARRAYS).write_bytes(b"nothing")
    with pytest.raises(StoreError, match="damaged"):
        probe.SafetyNeuronsResult.load(tmp_path / "out")
    with pytest.raises(StoreError, match="no such file"):
        probe.SafetyNeuronsResult.load(tmp_path / "nowhere")


def test_a_cell_that_is_its_own_baseline_has_no_ratio(seen):
    result = probe.measure(seen, seen)
    assert result.study is None
    assert result.equal_layers == result.layers
    assert (result.ratios, result.profiles, result.unmet) == ((), (), ())
    assert any("no error" in line for line in result.not_measured)
    assert not result.drawable
    nothing = probe.measure(seen, None)
    assert nothing.unmet == ("ratios",)
    assert nothing.baseline is None
    assert nothing.not_measured
    nothing.plot()


def test_study_mode_needs_the_evaluation_prompts_alone(base, cell, prompts, layers, tmp_path):
    needs = probe.needs(base.module.config.num_hidden_layers, study=True)
    assert {need.prompts for need in needs} == {"evaluate/harmful", "evaluate/harmless"}
    two = [observe(one, prompts, needs, tmp_path / one.digest) for one in (base, cell)]
    result = probe.measure(two[1], two[0], study=True)
    assert len(result.study.ratios) == len(layers)
    assert result.ratios == ()
    assert any("not part of the study mode" in line for line in result.not_measured)
    assert result.unmet == ()


def test_wrong_comparisons_are_refused(base, cell, prompts, seen, result, watch, saved, tmp_path):
    other = {name: some.select(range(len(some) - 1)) for name, some in prompts.items()}
    needs = probe.needs(base.module.config.num_hidden_layers)
    with pytest.raises(ParityError):
        probe.measure(observe(base, other, needs, tmp_path / "other"), seen)
    with pytest.raises(ParityError):
        probe.patch(result, cell, other[ERRORS], seen, TOKENS)
    with pytest.raises(SpecError, match="refusal tokens"):
        probe.patch(result, cell, prompts[ERRORS], seen, [])
    with pytest.raises(StoreError, match="write the baseline's first"):
        weight_errors(cell, tmp_path)
