"""Columns of the probes are what the results' own JSON says, and blanks where it says nothing."""

import json
import math

import pytest

from mechprobe.experiments.probe_columns import probe_columns
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import battery
from mechprobe.probes.folder import ProbeFolder

SPLITS = {"fit": ("train", 16), "select": ("validation", 10), "evaluate": ("test", 12)}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A baseline's results as its summary holds them: JSON by probe."""
    checkpoint = load_checkpoint("organism:llama-s", kernel="dense")
    prompts = {
        f"{name}/{label}": encode(
            checkpoint.tokenizer,
            [row.text for row in requests(split, n, seed=5) if row.label == label],
        )
        for name, (split, n) in SPLITS.items()
        for label in ("harmful", "harmless")
    }
    setup = battery.Setup(prompts, causal=False, max_new_tokens=6)
    folders = [ProbeFolder(tmp_path_factory.mktemp(name)) for name in ("baseline", "cell")]
    for k, folder in enumerate(folders):
        before = folders[0] if k else None
        battery.observe_cell(checkpoint, setup, folder, is_baseline=before is None)
        if before is None:
            battery.choose_tokens(checkpoint, setup, folder)
        battery.read_answers(checkpoint, setup, folder)
        battery.probe_entropy(setup, folder, before)
        battery.probe_calibration(setup, folder, before)
        battery.probe_direction(checkpoint, setup, folder, before)
        battery.probe_neurons(checkpoint, setup, folder, before)
    return [
        {name: json.loads((folder.path / f"{name}.json").read_text()) for name in battery.PROBES}
        | {"forward_tokens": folder.forward_tokens}
        for folder in folders
    ]


def rounded(found):
    """A matrix holds six decimals."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return round(found, 6) if isinstance(found, float) else found


def test_columns_are_what_the_json_says(probed):
    baseline, cell = probed
    first, row = probe_columns(baseline), probe_columns(cell)
    cell, baseline = rounded(cell), rounded(baseline)
    harmful = cell["entropy"]["harmful"]
    assert row["entropy_harmful"] == harmful["entropy"]["value"]
    assert row["entropy_shift_low"] == harmful["shift"]["low"]
    assert row["first_token_kl"] == harmful["kl"]["value"]
    assert row["first_token_flips"] == 0  # the same model twice; a zero is no blank
    assert row["refusal_log_odds"] == harmful["log_odds"]["value"]
    assert row["refusal_margin_lost_high"] == cell["entropy"]["margin_lost"]["high"]
    direction = cell["refusal_direction"]
    assert row["direction_layer"] == direction["layer"] == first["direction_layer"]
    assert row["direction_cosine"] == direction["cosine"] == pytest.approx(1)
    assert row["direction_auc"] == direction["auc"]
    assert row["direction_norm_ratio"] == direction["norm_ratio"]
    calibration = cell["calibration"]
    assert row["top1_harmful"] == calibration["first_token"]["top1"]["value"]
    assert row["refusal_ece"] == calibration["refusal"]["predicted"]["ece"]
    assert row["refusal_brier"] == calibration["refusal"]["predicted"]["brier"]["value"]
    for name in ("top5", "gini", "logit_range"):
        assert row[f"{name}_harmful_low"] == calibration["first_token"][name]["low"]
    harmless = cell["entropy"]["harmless"]
    assert row["entropy_harmless"] == harmless["entropy"]["value"] != row["entropy_harmful"]
    assert row["first_token_flips_harmless_high"] == harmless["flips"]["high"] > 0
    assert row["direction_dprime_high"] == direction["own"]["dprime"]["high"]
    assert row["direction_bypass"] is None  # candidates are scored on the baseline alone
    counts = baseline["forward_tokens"]
    assert first["forward_tokens_observational"] == counts["observational"]
    assert first["forward_tokens_interventional"] == counts["interventional, selection"] > 0
    assert row["forward_tokens_interventional"] == 0


def test_what_was_not_measured_is_blank(probed):
    baseline, cell = probed
    first, row = probe_columns(baseline), probe_columns(cell)
    against_baseline = ("entropy_shift", "first_token_kl", "direction_cosine", "neurons_ratio")
    assert [first[name] for name in against_baseline] == [None] * 4
    assert row["neurons_study_ratio"] is None  # a cell beside itself has no error
    assert row["ece"] is None  # no questions were asked
    assert row["direction_angle"] is None  # no twins were named
    assert row["harmful_refusal_ablated"] is None  # nothing was steered
    assert row["causal_n"] is None
    assert row["patching_returned"] is None


@pytest.mark.parametrize("missing", [*battery.PROBES, "forward_tokens"])
def test_a_missing_probe_leaves_its_columns_blank_and_no_others(probed, missing):
    whole = probe_columns(probed[1])
    part = probe_columns({name: found for name, found in probed[1].items() if name != missing})
    assert list(part) == list(whole)
    gone = {name for name in whole if part[name] != whole[name]}
    assert all(part[name] is None for name in gone)
    starts = {
        "entropy": ("entropy_harm", "entropy_shift", "first_token_", "refusal_log_odds",
                    "refusal_margin_"),
        "refusal_direction": ("direction_", "harmful_refusal_", "harmless_refusal_", "causal_n"),
        "calibration": ("top1_", "top5_", "gini_", "logit_range_", "entropy_proxy_ece", "ece",
                        "p_calibrated", "labelled_", "true_answer_", "refusal_ece",
                        "refusal_p_calibrated", "refusal_auroc", "refusal_brier"),
        "safety_neurons": ("neurons_", "patching_"),
        "forward_tokens": ("forward_tokens_",),
    }[missing]  # fmt: skip
    assert {name for name in gone if not name.startswith(starts)} == set()
    assert gone or missing == "safety_neurons"


def test_nothing_at_all_is_a_row_of_blanks():
    assert set(probe_columns({}).values()) == {None}


def test_selection_scores_are_those_of_the_selected_candidate():
    selected = {"position": -2, "layer": 5, "bypass": -3.0, "induce": 2.0, "kl": 0.05}
    row = probe_columns({"refusal_direction": {"scores": {"selected": selected}}})
    assert [row[f"direction_{name}"] for name in ("bypass", "induce", "kl")] == [-3.0, 2.0, 0.05]
    none = probe_columns({"refusal_direction": {"scores": {"selected": None}}})
    assert none["direction_bypass"] is None


def test_labelled_numbers_stand_beside_each_other():
    def estimate(value):
        return {"value": value, "low": value - 1, "high": value + 1, "n": 9}

    labelled = {
        "top": {"ece": 0.1, "ece_mass": 0.2, "auroc": estimate(3.0)},
        "brier": estimate(4.0),
        "nll": estimate(5.0),
        "ece_shift": estimate(6.0),
    }
    row = probe_columns({"calibration": {"labelled": labelled}})
    assert (row["ece"], row["ece_mass"]) == (0.1, 0.2)
    names = ("labelled_auroc", "labelled_brier", "labelled_nll", "ece_shift")
    for value, name in enumerate(names, start=3):
        assert [row[name + end] for end in ("", "_low", "_high")] == [value, value - 1, value + 1]


def test_every_interval_is_two_columns_beside_its_value():
    names = list(probe_columns({}))
    assert len(names) == len(set(names))
    lows = [name for name in names if name.endswith("_low")]
    assert len(lows) > 30
    for low in lows:
        at = names.index(low)
        assert names[at - 1 : at + 2] == [low.removesuffix("_low"), low, low[:-3] + "high"]


def test_safety_neurons_take_the_overall_row_of_five_percent():
    def ratio(kind, cutoff, layer, value):
        adjusted = {"ratio": value, "low": value - 1, "high": value + 1, "p": 0.25}
        return {
            "kind": kind, "cutoff": cutoff, "layer": layer, "adjusted": adjusted,
            "ratio": value + 100, "relative": value + 200, "n_safety": 65, "n_unmatched": 13,
            "weight": value + 300, "weight_relative": value + 400,
            "weight_adjusted": {**adjusted, "ratio": value + 500},
        }  # fmt: skip

    found = {
        "study": {"mean": 1.5, "low": 1.25, "high": 1.75, "p": 0.5},
        "ratios": [
            ratio("residual", 0.01, None, 11.0),
            ratio("residual", 0.05, None, 12.0),
            ratio("residual", 0.05, 2, 13.0),
            ratio("mlp", 0.05, None, 14.0),
        ],
        "patching": [
            {"kind": "mlp", "whole": {"value": 7.0}, "excess": None, "p": None},
            {
                "kind": "residual",
                "whole": {"value": 8.0, "low": 7.0, "high": 9.0},
                "excess": {"value": 2.0, "low": 1.0, "high": 3.0},
                "p": 0.05,
                "everything": {"value": 9.0, "low": 8.0, "high": 10.0},
            },
        ],
    }
    row = probe_columns({"safety_neurons": found})
    assert (row["neurons_study_ratio"], row["neurons_ratio"], row["neurons_ratio_low"]) == (
        1.5,
        12.0,
        11.0,
    )
    assert row["neurons_mlp_ratio"] == 14.0
    assert (row["neurons_study_ratio_high"], row["neurons_study_ratio_p"]) == (1.75, 0.5)
    assert row["neurons_matched"] == row["neurons_mlp_matched"] == 0.8
    measured = ("unadjusted", "relative", "weight_unadjusted", "weight_relative", "weight_ratio")
    for prefix, value in (("neurons_", 12.0), ("neurons_mlp_", 14.0)):
        expected = [value + 100 * k for k in range(1, 6)]
        assert [row[prefix + name] for name in measured] == expected
        assert (row[f"{prefix}ratio_p"], row[f"{prefix}weight_ratio_high"]) == (0.25, value + 1)
    assert row["patching_mlp_returned"] == 7.0 and row["patching_mlp_excess"] is None
    assert (row["patching_returned_low"], row["patching_excess_high"]) == (7.0, 3.0)
    assert row["patching_everything"] == 9.0
    assert (row["patching_returned"], row["patching_excess"], row["patching_p"]) == (8.0, 2.0, 0.05)


def test_a_number_that_is_none_is_blank():
    found = {"calibration": {"first_token": {"proxy_ece": math.nan}}}
    assert probe_columns(found)["entropy_proxy_ece"] is None
