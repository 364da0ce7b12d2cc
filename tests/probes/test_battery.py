"""All four probes on the organism and on a Q2_K of it, from folders."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.special import rel_entr, softmax

from mechprobe.activations.batching import groups, length_sorted
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import battery
from mechprobe.probes.calibration import CalibrationResult
from mechprobe.probes.counting import counting
from mechprobe.probes.direction_result import UNSTEERED
from mechprobe.probes.entropy import EntropyResult
from mechprobe.probes.fitting import twin_rows
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.refusal_direction import RefusalDirectionResult
from mechprobe.probes.safety_neurons import SafetyNeuronsResult

RESULTS = {
    "entropy": EntropyResult,
    "refusal_direction": RefusalDirectionResult,
    "calibration": CalibrationResult,
    "safety_neurons": SafetyNeuronsResult,
}
FILES = (
    "observation/observation.json",
    "refusals.json",
    "forward_tokens.json",
    "entropy.json",
    "refusal_direction.json",
    "refusal_direction.safetensors",
    "calibration.json",
    "safety_neurons.json",
    "safety_neurons.npz",
)


def prompts_of(tokenizer, counts):
    splits = {"fit": "train", "select": "validation", "evaluate": "test"}
    rows = {name: requests(splits[name], n, seed=3) for name, n in counts.items()}
    rows = {
        f"{name}/{label}": [row for row in found if row.label == label]
        for name, found in rows.items()
        for label in ("harmful", "harmless")
    }
    prompts = {name: encode(tokenizer, [r.text for r in found]) for name, found in rows.items()}
    return prompts, twin_rows(rows["fit/harmful"], rows["fit/harmless"])


def probe(checkpoint, setup, folder, baseline=None):
    """The work of one cell, in the order of the matrix; results by name."""
    battery.observe_cell(checkpoint, setup, folder, is_baseline=baseline is None)
    if not setup.study:
        if baseline is None:
            battery.choose_tokens(checkpoint, setup, folder)
        battery.read_answers(checkpoint, setup, folder)
    return {
        "entropy": battery.probe_entropy(setup, folder, baseline),
        "refusal_direction": battery.probe_direction(checkpoint, setup, folder, baseline),
        "calibration": battery.probe_calibration(setup, folder, baseline),
        "safety_neurons": battery.probe_neurons(checkpoint, setup, folder, baseline),
    }


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def coarse(organism, tmp_path_factory):
    file = quantize("organism:llama-s", "Q2_K", tmp_path_factory.mktemp("gguf") / "coarse.gguf")
    return load_checkpoint(file, kernel="dense", expect="Q2_K")


@pytest.fixture(scope="module")
def setup(organism):
    prompts, twins = prompts_of(organism.tokenizer, {"fit": 24, "select": 12, "evaluate": 16})
    return battery.Setup(prompts, twins=twins, max_new_tokens=6)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def baseline(organism, setup, home):
    folder = ProbeFolder(home / "baseline")
    return folder, probe(organism, setup, folder)


@pytest.fixture(scope="module")
def cell(coarse, setup, home, baseline):
    folder = ProbeFolder(home / "cell")
    return folder, probe(coarse, setup, folder, baseline[0])


def test_every_file_is_there_and_loads_back(baseline, cell):
    for folder, results in (baseline, cell):
        assert [name for name in FILES if not (folder.path / name).exists()] == []
        assert not list(folder.path.rglob("*.part"))
        for name, kind in RESULTS.items():
            again = kind.load(folder.path)
            assert json.dumps(again.to_dict()) == json.dumps(results[name].to_dict()), name
    assert (baseline[0].path / "refusal_tokens.json").exists()
    assert (baseline[0].path / "weights").is_dir()
    assert not (cell[0].path / "refusal_tokens.json").exists()
    assert not (cell[0].path / "weights").exists()


def test_tables_fit_80_columns_uncut_and_titles_their_figures(baseline, cell):
    for _, results in (baseline, cell):
        for name, found in results.items():
            shown = io.StringIO()
            Console(file=shown, width=80).print(found)
            assert max(map(len, shown.getvalue().splitlines())) <= 80, name
            assert "…" not in shown.getvalue(), name
    long = f"/a/long/path/of/many/folders/{'x' * 90}.gguf"
    for name, found in cell[1].items():
        part = "direction" if name == "refusal_direction" else "cell"
        renamed = dataclasses.replace(getattr(found, part), source=long)
        page = dataclasses.replace(found, **{part: renamed}).plot()
        page.draw_without_rendering()
        title = page._suptitle.get_window_extent()
        assert title.x0 > 0 and title.x1 < page.bbox.width, name
        assert "x…x" in page.get_suptitle() and "folders" not in page.get_suptitle(), name


def test_the_cell_is_compared_with_its_baseline(setup, baseline, cell):
    folder, results = cell
    entropy, direction = results["entropy"], results["refusal_direction"]
    assert entropy.cell.precision == "Q2_K"
    assert entropy.tokens == baseline[0].tokens
    logits = [seen.observation.logits("evaluate/harmful") for seen in (baseline[0], folder)]
    before, after = (softmax(x, axis=1) for x in logits)
    np.testing.assert_allclose(
        entropy.harmful.kl.value, rel_entr(before, after).sum(axis=1).mean(), rtol=1e-9
    )
    chosen = baseline[1]["refusal_direction"].direction
    assert (direction.direction.position, direction.direction.layer) == (
        chosen.position,
        chosen.layer,
    )
    a, b = (
        seen.observation.values(
            "evaluate/harmful", f"blocks.{chosen.layer}.hook_resid_pre", (chosen.position,)
        )
        for seen in (baseline[0], folder)
    )
    assert np.abs(a - b).max() > 0
    assert results["safety_neurons"].study.mean > 0
    assert {part.kind for part in results["safety_neurons"].patching} == {"residual", "mlp"}
    # a statistic that the data cannot support is said to be missing, not 0
    assert results["calibration"].labelled is None
    assert any("no labelled questions" in line for line in results["calibration"].not_measured)


def test_observation_sends_each_token_once(organism, setup, baseline, tmp_path):
    with counting(organism) as count:
        battery.observe_cell(organism, setup, ProbeFolder(tmp_path), is_baseline=True)
    again = ProbeFolder(tmp_path)
    plain = 0
    for name in again.observation.prompt_sets:
        ids = setup.prompts[name].ids
        shared = again.observation.store(name).plan.prefix
        assert shared > 0
        assert len({row[:shared] for row in ids}) == 1
        plain += shared + sum(len(row[shared:]) for row in ids)
    assert set(again.observation.prompt_sets) == set(setup.prompts)
    assert count.tokens == again.observation.facts.forward_tokens == plain
    assert again.forward_tokens == {"observational": plain}
    assert baseline[0].forward_tokens["observational"] == plain


def test_a_baseline_that_was_not_steered_is_said_beside_its_cell(baseline, cell):
    steered, found = (done["refusal_direction"] for _, done in (baseline, cell))
    assert steered.causal is not None and found.causal is not None
    assert UNSTEERED not in found.not_measured
    alone = dataclasses.replace(steered, causal=None)
    assert found.with_causal(found.causal, alone).not_measured[-1] == UNSTEERED
    assert found.with_causal(found.causal, steered).not_measured == found.not_measured


def test_tokens_are_counted_by_purpose(setup, baseline, cell):
    made = baseline[0].forward_tokens
    assert set(made) == {
        "observational",
        "generated, for refusal tokens",
        "generated, for calibration",
        "interventional, selection",
        "interventional, steering",
    }
    assert set(cell[0].forward_tokens) == {
        "observational",
        "generated, for calibration",
        "interventional, steering",
        "interventional, patching",
    }
    scores = baseline[1]["refusal_direction"].scores
    assert made["interventional, selection"] == scores.forward_tokens
    # each batch is read once; a set of neurons runs the patched tokens from its first layer on
    prompts = setup.prompts["evaluate/harmful"]
    plain = 0
    for rows in groups(length_sorted([len(ids) for ids in prompts.ids]), 16):
        batch = prompts.select(rows)
        shared = batch.common_prefix()
        plain += shared + sum(len(ids) - shared for ids in batch.ids)
    layers, expected = cell[0].observation.facts.n_layers, 0.0
    for part in cell[1]["safety_neurons"].patching:
        sets = 2 if part.excess is None else 3 + len(part.random)
        first = part.layers[0] + (part.kind == "residual")
        ends = len(prompts) * prompts.post_instruction
        expected += plain + sets * ends * (1 - first / layers)
    assert cell[0].forward_tokens["interventional, patching"] == round(expected)


def test_a_baseline_beside_itself_has_lost_nothing(organism, setup, baseline, tmp_path):
    folder, first = baseline
    results = probe(organism, setup, ProbeFolder(tmp_path), folder)
    entropy, direction = results["entropy"], results["refusal_direction"]
    for found in (entropy.harmful, entropy.harmless):
        assert found.kl.value == pytest.approx(0, abs=1e-9)
        assert found.shift.value == pytest.approx(0, abs=1e-6)
        assert found.flips.count == 0
    assert entropy.margin_lost.value == pytest.approx(0, abs=1e-5)
    assert direction.cosine == pytest.approx(1, abs=1e-9)
    assert direction.norm_ratio == pytest.approx(1, abs=1e-6)
    assert direction.direction.norm == pytest.approx(first["refusal_direction"].direction.norm)
    assert results["calibration"].refusal.predicted.ece == pytest.approx(
        results["calibration"].refusal.baseline.ece
    )
    neurons = results["safety_neurons"]
    assert (neurons.study, neurons.unmet, neurons.drawable) == (None, (), False)
    assert any("weights equal the baseline" in line for line in neurons.not_measured)


def test_study_mode_runs_all_four(organism, coarse, setup, tmp_path):
    wanted = {f"evaluate/{label}" for label in ("harmful", "harmless")}
    study = battery.Setup(setup.prompts, study=True)
    folders = [ProbeFolder(tmp_path / name) for name in ("baseline", "cell")]
    with counting(organism) as count:
        probe(organism, study, folders[0])
    assert count.tokens == folders[0].forward_tokens["observational"]  # nothing but the one pass
    results = probe(coarse, study, folders[1], folders[0])
    assert set(folders[1].observation.prompt_sets) == wanted
    assert folders[1].forward_tokens == folders[0].forward_tokens
    assert results["entropy"].harmful.shift is not None
    assert results["entropy"].harmful.kl is None
    assert results["refusal_direction"].cosine < 1
    assert results["refusal_direction"].direction.layer == int(
        0.65 * organism.module.config.num_hidden_layers
    )
    assert results["calibration"].first_token.top1.n == 16
    assert results["calibration"].refusal is None
    assert results["safety_neurons"].study.mean > 0
    assert results["safety_neurons"].ratios == ()
    for name, found in results.items():
        assert any("study mode" in line for line in found.not_measured), name
        assert found.warnings == (), name
    # the other way round: what is compared with a quantized checkpoint says so
    turned = probe(organism, study, ProbeFolder(tmp_path / "turned"), folders[1])
    for name, found in turned.items():
        assert "itself quantized (Q2_K)" in found.warnings[0], name
        assert found.to_dict()["warnings"] == list(found.warnings), name
        shown = io.StringIO()
        Console(file=shown, width=200).print(found)
        assert found.warnings[0] in " ".join(shown.getvalue().split()), name


def test_a_full_disk_takes_no_finished_shard_away(organism, setup, tmp_path, monkeypatch):
    from mechprobe.activations import shards
    from mechprobe.errors import StoreError

    folder, whole = ProbeFolder(tmp_path / "cell"), shards.replace_durably
    written = []

    def full(temporary, path):
        if path.suffix == ".h5" and written:
            raise OSError(28, "No space left on device")
        written.extend([path] if path.suffix == ".h5" else [])
        whole(temporary, path)

    monkeypatch.setattr(shards, "replace_durably", full)
    with pytest.raises(StoreError, match="finished shards are kept"):
        battery.observe_cell(organism, setup, folder, is_baseline=True)
    assert [path.exists() for path in written] == [True]


def test_an_observation_of_other_prompts_is_replaced(organism, setup, tmp_path):
    folder = ProbeFolder(tmp_path / "cell")
    few = {name: prompts.select(range(8)) for name, prompts in setup.prompts.items()}
    battery.observe_cell(
        organism, dataclasses.replace(setup, prompts=few), folder, is_baseline=True
    )
    battery.observe_cell(organism, setup, folder, is_baseline=True)
    assert folder.observation.digest("fit/harmful") == setup.prompts["fit/harmful"].digest
