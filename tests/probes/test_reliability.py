"""Calibration errors against torchmetrics and scikit-learn, and classifiers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from mechprobe.probes.reliability import ece_shift, expected_calibration_error, reliability


def draw(seed: int, n: int, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of known probabilities, which are stated with log-odds times `sharpen`."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.8, 1.2, size=n)
    stated = 1 / (1 + np.exp(-sharpen * odds))
    return stated, rng.random(n) < 1 / (1 + np.exp(-odds))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(30, 400), st.integers(2, 30))
def test_equal_width_ece_equals_torchmetrics(seed, n, bins):
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    p, y = draw(seed, n)
    expected = torchmetrics.binary_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y).int(), n_bins=bins, norm="l1"
    )
    assert expected_calibration_error(p, y, bins) == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_sklearns_calibration_curve(binning, strategy, seed):
    p, y = draw(seed, 1500)
    share, mean = calibration_curve(y, p, n_bins=15, strategy=strategy)
    found = reliability(p, y, resamples=10)
    parts = found.bins_width if binning == "width" else found.bins_mass
    weight = np.array([part.outcome.n for part in parts]) / 1500
    np.testing.assert_allclose([part.probability for part in parts], mean, atol=1e-12)
    np.testing.assert_allclose([part.outcome.rate for part in parts], share, atol=1e-12)
    expected = float((weight * np.abs(share - mean)).sum())
    ece = found.ece if binning == "width" else found.ece_mass
    assert ece == pytest.approx(expected, abs=1e-12)
    if binning == "mass":
        assert {part.outcome.n for part in parts} == {100}


@pytest.mark.parametrize("seed", range(5))
def test_brier_and_auroc_equal_sklearn(seed):
    p, y = draw(seed, 200, sharpen=2)
    found = reliability(np.round(p, 2), y, resamples=10)  # rounded: with ties
    assert found.brier.value == pytest.approx(brier_score_loss(y, np.round(p, 2)), abs=1e-12)
    assert found.auroc.value == pytest.approx(roc_auc_score(y, np.round(p, 2)), abs=1e-12)
    assert found.gap.value == pytest.approx(np.round(p, 2).mean() - y.mean(), abs=1e-12)


def test_bins_by_hand():
    # bins (0, .5] and (.5, 1]: |0.5 - 0.3| and |2/3 - 0.8|, weighted 2 and 3 of 5
    p, y = [0.1, 0.5, 0.6, 0.8, 1.0], [0, 1, 1, 0, 1]
    assert expected_calibration_error(p, y, 2) == pytest.approx(
        (2 * 0.2 + 3 * abs(2 / 3 - 0.8)) / 5
    )
    # equal probabilities stay together however they are ordered
    p, y = [0.7] * 9 + [0.2], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert expected_calibration_error(p, y, 3, "mass") == pytest.approx(
        expected_calibration_error(p[::-1], y[::-1], 3, "mass")
    )


def test_known_classifiers_come_out_as_what_they_are():
    calibrated = reliability(*draw(0, 2000))
    assert calibrated.verdict == "no miscalibration shown"
    assert calibrated.ece <= calibrated.ece_limit
    assert abs(calibrated.gap.value) < 0.03
    over = reliability(*draw(0, 2000, sharpen=3.0))
    assert over.verdict == "overconfident" and over.p_calibrated < 0.001
    assert over.ece > 2 * over.ece_limit and over.gap.low > 0
    under = reliability(*draw(0, 2000, sharpen=0.3))
    assert under.verdict == "underconfident" and under.gap.high < 0
    p, y = draw(1, 4000)
    extreme = np.where(p > y.mean(), (p + 1) / 2, p / 2)
    crossed = reliability(extreme, y)  # too high above the base rate, too low below it
    assert crossed.p_calibrated < 0.001 and abs(crossed.gap.value) < 0.1
    assert over.auroc.value == pytest.approx(calibrated.auroc.value, abs=1e-9)  # order is kept


def test_the_verdict_is_not_fooled_by_small_samples():
    found = [reliability(*draw(seed, 60), resamples=400, seed=seed) for seed in range(120)]
    wrong = sum(one.verdict != "no miscalibration shown" for one in found)
    assert wrong <= 13  # 5 % of 120 is 6; an ECE with a fixed limit would call most of them wrong
    assert sum(one.gap.low <= 0 <= one.gap.high for one in found) >= 105
    assert np.mean([one.ece for one in found]) > 0.08
    assert np.mean([one.ece_if_calibrated for one in found]) == pytest.approx(
        np.mean([one.ece for one in found]), abs=0.01
    )
    assert kstest([one.p_calibrated for one in found], "uniform").pvalue > 0.01


@pytest.mark.parametrize("rare", [0, 2, 7, 8])
def test_an_auroc_needs_eight_of_each_outcome(rare):
    """Two refusals among 200 answers once gave 0.823 [0.616, 0.990]."""
    p = np.random.default_rng(rare).random(200)
    y = np.arange(200) < rare
    for outcome in (y, ~y):
        found = reliability(p, outcome, resamples=50)
        assert (found.auroc is None) == (rare < 8)
        assert found.ece > 0 and found.brier.n == 200  # these need no two kinds


def test_a_failed_rejection_is_no_finding():
    """Right half of the time where 60 % is stated: 40 questions cannot show it."""
    p, y = np.full(40, 0.6), np.arange(40) % 2
    found = reliability(p, y)
    assert found.p_calibrated > 0.05 and found.ece == pytest.approx(0.1)
    assert found.verdict == "no miscalibration shown"
    assert reliability(np.full(400, 0.6), np.arange(400) % 2).verdict == "overconfident"


def test_ece_shift_is_paired():
    p, y = draw(3, 800)
    sharp = 1 / (1 + (1 / p - 1) ** 3)
    found = ece_shift((sharp, y), (p, y))
    expected = expected_calibration_error(sharp, y) - expected_calibration_error(p, y)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0 < found.low < found.value < found.high
    same = ece_shift((p, y), (p, y))
    # no change among 800 rows: Tango's interval, z² / (n + z²)
    end = 3.8414588 / 803.8414588
    assert (same.value, same.low, same.high) == pytest.approx((0, -end, end))


def test_noise_of_arithmetic_makes_no_interval_narrower():
    p, y = draw(3, 220)
    same = ece_shift((p, y), (p, y))
    noise = np.random.default_rng(0).normal(size=220)
    for size in (1e-12, 1e-6):
        near = ece_shift((np.clip(p + size * noise, 0, 1), y), (p, y))
        assert (near.low, near.high) == pytest.approx((same.low, same.high), abs=1e-5)
    turned = y.copy()
    turned[0] = 1 - turned[0]
    one = ece_shift((p, turned), (p, y))
    assert one.high - one.low >= same.high - same.low


def rises(over, n, rounds):
    """Intervals where the cell states what its calibrated baseline does, and is wrong more often.

    The population's ECE rises from 0 to `over`.
    """
    rng = np.random.default_rng(5)
    for _ in range(rounds):
        p, u = rng.beta(5, 2, n), rng.random(n)
        given = ((u < p - over).astype(float), (u < p).astype(float))
        yield ece_shift((p, given[0]), (p, given[1]), resamples=300)


def test_a_rise_of_the_populations_ece_is_covered():
    found = list(rises(0.1, 220, 60))
    assert sum(one.low <= 0.1 <= one.high for one in found) >= 54  # 16 by the bootstrap alone
    assert all(one.low <= one.value <= one.high for one in found)


@pytest.mark.verify
@pytest.mark.parametrize(("over", "n"), [(0.05, 220), (0.1, 220), (0.2, 220), (0.1, 1000)])
def test_rises_of_all_sizes_are_covered(over, n):
    hits = [one.low <= over <= one.high for one in rises(over, n, 400)]
    assert np.mean(hits) >= 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5


def test_what_cannot_be_measured():
    assert reliability([0.5], [1]) is None
    assert reliability([], []) is None
    assert reliability([0.5, 0.7, 0.9], [1, 1, 1]).auroc is None
    for wrong in (([0.5, 1.2], [0, 1]), ([0.5], [0, 1]), ([np.nan, 0.1], [0, 1])):
        with pytest.raises(ValueError, match=r"not pairs|not in \[0, 1\]"):
            reliability(*wrong)
