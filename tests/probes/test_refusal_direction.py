"""The refusal direction against transformers' own hidden states, and against what it must do."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score

from mechprobe.errors import MechprobeError, ParityError, PromptFileError, StoreError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import battery
from mechprobe.probes import refusal_direction as probe
from mechprobe.probes.direction import WEIGHTS, RefusalDirection
from mechprobe.probes.observation import observe
from mechprobe.probes.refusal_presets import given_tokens
from mechprobe.probes.refusals import read_refusals
from mechprobe.probes.running import run
from mechprobe.probes.separability import QUANTILES

SPLITS = {"fit": ("train", 96), "select": ("validation", 32), "evaluate": ("test", 48)}


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def records():
    return {
        (name, label): [row for row in requests(split, n, seed=1) if row.label == label]
        for name, (split, n) in SPLITS.items()
        for label in probe.LABELS
    }


@pytest.fixture(scope="module")
def prompts(organism, records):
    return {
        key: encode(organism.tokenizer, [row.text for row in rows]) for key, rows in records.items()
    }


@pytest.fixture(scope="module")
def twins(records):
    found = probe.twin_rows(records["fit", "harmful"], records["fit", "harmless"])
    assert found == [(k, k) for k in range(SPLITS["fit"][1])]
    return found


@pytest.fixture(scope="module")
def refusal_ids(organism):
    firsts = ("I can't", "I won't")
    return sorted({organism.tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in firsts})


@pytest.fixture(scope="module")
def setup(organism, prompts, twins, refusal_ids):
    return battery.Setup(
        {f"{name}/{label}": found for (name, label), found in prompts.items()},
        probes=("refusal_direction",),
        twins=twins,
        tokens=given_tokens(organism.tokenizer, ids=refusal_ids),
        max_new_tokens=16,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("baseline")


@pytest.fixture(scope="module")
def result(organism, setup, home):
    return run(organism, setup, home)["refusal_direction"]


@pytest.fixture(scope="module")
def beside_itself(organism, setup, home, result, tmp_path_factory):
    """The same model as a cell of its own baseline."""
    quiet = dataclasses.replace(setup, causal=False)
    return run(organism, quiet, tmp_path_factory.mktemp("cell"), home)["refusal_direction"]


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
    a = _hidden(organism, prompts["fit", "harmful"], layer)[list(result.direction.rows_harmful)]
    b = _hidden(organism, prompts["fit", "harmless"], layer)[list(result.direction.rows_harmless)]
    expected = a.mean(0) - b.mean(0)
    layers = organism.module.config.num_hidden_layers
    assert result.direction.vectors.shape == (3, layers, a.shape[1])
    assert result.position == -1
    np.testing.assert_allclose(result.direction.vector, expected, atol=1e-5 * np.abs(a).max())
    assert result.norm == pytest.approx(np.linalg.norm(expected), rel=1e-4)


def test_separability_is_measured_on_held_out_prompts(organism, prompts, result):
    unit = result.direction.unit.astype(np.float64)
    a = _hidden(organism, prompts["evaluate", "harmful"], result.layer) @ unit
    b = _hidden(organism, prompts["evaluate", "harmless"], result.layer) @ unit
    labels = [1] * len(a) + [0] * len(b)
    own = result.own
    assert own.auc.value == pytest.approx(roc_auc_score(labels, [*a, *b]), abs=1e-9)
    pooled = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    assert own.dprime.value == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-3)
    assert own.auc.low <= own.auc.value <= own.auc.high
    assert own.dprime.low < own.dprime.value < own.dprime.high
    assert result.n_harmful == len(a) == 48


def test_margins_count_from_the_fitted_means(organism, prompts, result):
    unit = result.direction.unit.astype(np.float64)
    fitted = [
        (_hidden(organism, prompts["fit", label], result.layer)[list(rows)] @ unit).mean()
        for label, rows in (
            ("harmful", result.direction.rows_harmful),
            ("harmless", result.direction.rows_harmless),
        )
    ]
    held = _hidden(organism, prompts["evaluate", "harmful"], result.layer) @ unit
    expected = (held - np.mean(fitted)) / ((fitted[0] - fitted[1]) / 2)
    np.testing.assert_allclose(result.own.harmful_margins, expected, atol=1e-4)
    assert result.own.harmful_quantiles == pytest.approx(np.quantile(expected, QUANTILES), abs=1e-4)
    assert result.own.crossed[0] == (expected < 0).sum()


def test_ablating_the_direction_takes_refusal_away_and_a_random_one_does_not(result):
    causal = result.causal
    assert causal is not None
    assert causal.harmful.rate > 0.9
    assert causal.harmful_ablated.high < causal.harmful.low  # Wilson intervals apart
    assert causal.harmful_ablated_random.rate > causal.harmful.rate - 0.1
    assert causal.harmless.rate < 0.1
    assert causal.harmless_added.rate >= causal.harmless_added_random.rate
    assert causal.harmless_added_random.rate < causal.harmless.rate + 0.1


def test_a_model_compared_with_itself_has_not_changed(result, beside_itself):
    again = beside_itself
    assert again.cosine == pytest.approx(1.0, abs=1e-9)
    assert again.norm_ratio == pytest.approx(1.0, abs=1e-9)
    assert again.study_place.cosine == pytest.approx(1.0, abs=1e-9)
    assert again.on_baseline.auc == again.own.auc
    assert again.cosine_floor == result.direction.split_half
    assert max(again.angles.degrees) < 0.01 < again.angles.floor[0] < again.angles.floor[-1]
    assert again.not_measured == ("causal check: not run",)


def test_a_cell_is_fitted_on_the_prompts_that_its_baseline_refuses(
    organism, prompts, refusal_ids, tmp_path
):
    everything = {f"{name}/{label}": prompts[name, label] for name, label in prompts}
    seen = observe(organism, everything, probe.needs(3), tmp_path)
    first = probe.measure(seen, refusal_ids=refusal_ids)
    kept = probe.Kept(tuple(range(5)), tuple(range(2, 9)))
    before = probe.fit_directions(seen, kept=kept, place=(-2, 3))
    found = probe.measure(seen, before, refusal_ids=refusal_ids)
    assert found.direction.rows_harmful == kept.harmful
    assert (found.position, found.layer) == (-2, 3)  # where the baseline was selected
    assert found.cosine == pytest.approx(1.0, abs=1e-9)
    # two observations, as the runs do it
    both = probe.measure(seen, seen, refusal_ids=refusal_ids, place=(-1, 2))
    assert both.cosine == pytest.approx(1.0, abs=1e-9)
    assert both.direction.rows_harmful == first.direction.rows_harmful


def test_study_mode_fits_and_compares_on_one_set_of_prompts(organism, prompts, tmp_path):
    sets = {f"evaluate/{label}": prompts["evaluate", label] for label in probe.LABELS}
    seen = observe(organism, sets, probe.needs(study=True), tmp_path)
    found = probe.measure(seen, seen, study=True)
    layer = math.floor(0.65 * organism.module.config.num_hidden_layers)
    assert (found.position, found.layer) == (-1, layer)
    a, b = (_hidden(organism, sets[f"evaluate/{label}"], layer) for label in probe.LABELS)
    assert found.norm == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), rel=1e-4)
    assert (found.cosine, found.norm_ratio) == pytest.approx((1.0, 1.0), abs=1e-9)
    assert found.own is None and found.angles is None
    assert "not part of the study mode" in found.not_measured[0]


def test_results_survive_the_disk(result, beside_itself, tmp_path):
    for number, one in enumerate((result, beside_itself)):
        loaded = probe.RefusalDirectionResult.load(one.save(tmp_path / f"{number}"))
        for name in ("vectors", "split_halves", "basis"):
            mine, theirs = getattr(one.direction, name), getattr(loaded.direction, name)
            np.testing.assert_array_equal(mine, theirs)
        assert loaded.to_dict() == one.to_dict()
        assert loaded.own == one.own and loaded.causal == one.causal
        json.dumps(one.to_dict(), allow_nan=False)
    (tmp_path / "0" / WEIGHTS).write_bytes(b"not a safetensors file")
    with pytest.raises(StoreError, match="not a saved refusal direction"):
        RefusalDirection.load(tmp_path / "0")
    (tmp_path / "1" / "refusal_direction.json").write_text("{}")
    with pytest.raises(StoreError, match="not a saved result"):
        probe.RefusalDirectionResult.load(tmp_path / "1")
    with pytest.raises(StoreError, match="no such file"):
        RefusalDirection.load(tmp_path / "nowhere")


def test_what_people_see_says_what_was_measured_and_what_was_not(result, tmp_path):
    screen = Console(file=io.StringIO(), width=100)
    screen.print(result)
    text = screen.file.getvalue()
    assert result.unmet == ()
    for words in ("candidates", "AUC", "direction ablated", "random added", "not measured"):
        assert words in text
    drawn = result.plot()
    assert [axes.get_title() for axes in drawn.axes if axes.get_visible()] == [
        "Held-out prompts along the direction",
        "Ablated, on harmful prompts (dashes: as it is)",
        "Added, on harmless prompts (crosses dropped, ring selected)",
        "Generated answers, read by “hard”",
    ]
    assert result.direction.precision in drawn.get_suptitle()
    drawn.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_wrong_comparisons_are_refused(organism, setup, home, result, tmp_path):
    def changed(**prompts):
        return dataclasses.replace(setup, prompts={**setup.prompts, **prompts}, causal=False)

    fewer = {"fit/harmful": setup.prompts["fit/harmful"].select(range(32))}
    with pytest.raises(ParityError, match="harmful: prompt digests differ"):
        run(organism, changed(**fewer), tmp_path / "fewer", home)
    both = {"evaluate/harmful": setup.prompts["fit/harmful"]}
    with pytest.raises(PromptFileError, match="both in evaluate/harmful and in fit/harmful"):
        run(organism, changed(**both), tmp_path / "both")
    with pytest.raises(MechprobeError, match="layer 99: this model has layers 0 to"):
        run(organism, dataclasses.replace(setup, place=(-1, 99)), tmp_path / "layer")


def test_the_control_is_orthogonal_and_as_long():
    vector = np.random.default_rng(0).normal(size=256).astype(np.float32)
    control = probe.random_orthogonal(vector, seed=3)
    assert np.linalg.norm(control) == pytest.approx(np.linalg.norm(vector), rel=1e-6)
    assert abs(float(control.astype(np.float64) @ vector)) < 1e-4 * float(vector @ vector)


def test_the_default_layer_is_at_65_percent_depth():
    assert [probe.default_layer(n) for n in (1, 4, 16, 28, 32)] == [0, 2, 10, 18, 20]


@pytest.mark.verify
def test_the_dose_is_one(organism, prompts, result):
    """A vector so short that half and double of it refuse differently, added by a plain hook."""
    few = {label: prompts["evaluate", label].select(range(10)) for label in probe.LABELS}
    layer = result.layer

    def refused(vector):
        def add(module, inputs):
            return (inputs[0] + torch.from_numpy(vector), *inputs[1:])

        handle = organism.module.model.layers[layer].register_forward_pre_hook(add)
        try:
            read = read_refusals(organism, few["harmless"], max_new_tokens=16)
        finally:
            handle.remove()
        return sum(map(bool, read.refused))

    for share in (0.25, 0.35, 0.5, 0.7):
        short = dataclasses.replace(result.direction, vectors=result.direction.vectors * share)
        half, whole, double = (refused(short.vector * dose) for dose in (0.5, 1, 2))
        if half < whole < double:
            break
    assert half < whole < double
    check = probe.causal_check(organism, short, few["harmful"], few["harmless"], max_new_tokens=16)
    assert check.harmless_added.count == whole


def test_the_selected_direction_mediates_refusal(result):
    assert result.scores.selection is not None, result.scores.problem
    causal = result.causal
    assert causal.harmful.rate > 0.95
    assert causal.harmful_ablated.rate < 0.1
    assert causal.harmful_ablated_random.rate > 0.9
    assert causal.harmless.rate < 0.05
    assert causal.harmless_added.rate > 0.9
    assert causal.harmless_added_random.rate < 0.1
