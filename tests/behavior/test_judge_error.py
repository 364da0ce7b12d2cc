import math

import numpy as np
import pytest

from mechprobe.behavior.judge_error import ErrorRates, corrected_rate, judge_error
from mechprobe.behavior.judges.base import Judgement
from mechprobe.behavior.rate import Rate


def _error(hits, n1, rejections, n0):
    return ErrorRates(Rate.of(hits, n1), Rate.of(rejections, n0), 0)


def _refuses(k, n):
    return [True] * k + [False] * (n - k)


def test_sensitivity_and_specificity_are_counted_against_the_labels():
    labels = ["FULL_REFUSAL", "COMPLIANCE", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR", None]
    said = [
        Judgement(str(i), "t", "r", 0, "", str(i), "j", "", "j", label, "labelled")
        for i, label in enumerate(labels)
    ]
    right = ["FULL_REFUSAL", "FULL_REFUSAL", "COMPLIANCE", "COMPLIANCE", "UNCLEAR", "COMPLIANCE"]
    truth = {("t", "r", str(i), 0): label for i, label in enumerate(right)}
    found = judge_error(said, truth)
    assert (found.sensitivity.count, found.sensitivity.n) == (1, 2)
    assert (found.specificity.count, found.specificity.n) == (1, 2)
    assert found.missing == 2  # what is UNCLEAR to the judge is in no rate of its, nor in its error
    assert found.youden == 1 / 2 + 1 / 2 - 1


def test_the_estimator_undoes_a_known_error_exactly():
    """True rate 0.6; se 0.9, sp 0.8: the judge sees 0.6 * 0.9 + 0.4 * 0.2 = 0.62."""
    found = corrected_rate(_refuses(620, 1000), _error(90, 100, 80, 100))
    assert found.uncorrected.value == pytest.approx(0.62)
    assert found.corrected.value == pytest.approx(0.6, abs=1e-12)


def test_the_interval_is_the_delta_methods_where_that_holds():
    """Rogan and Gladen's variance, with much data on all sides."""
    n, n1, n0, se, sp, p = 4000, 3000, 2500, 0.9, 0.8, 0.6
    rate = p * se + (1 - p) * (1 - sp)
    found = corrected_rate(_refuses(round(rate * n), n), _error(2700, n1, 2000, n0), seed=1)
    j = se + sp - 1
    variance = (
        rate * (1 - rate) / n + p**2 * se * (1 - se) / n1 + (1 - p) ** 2 * sp * (1 - sp) / n0
    ) / j**2
    half = 1.96 * math.sqrt(variance)
    assert found.corrected.low == pytest.approx(p - half, abs=0.003)
    assert found.corrected.high == pytest.approx(p + half, abs=0.003)


def test_few_labelled_items_widen_the_interval_even_without_a_mistake():
    refuses = _refuses(60, 100)
    few, many = (corrected_rate(refuses, _error(n, n, n, n)) for n in (10, 1000))
    assert few.corrected.value == many.corrected.value == pytest.approx(0.6)
    width = [one.corrected.high - one.corrected.low for one in (few, many)]
    plain = many.uncorrected.high - many.uncorrected.low
    assert width[1] == pytest.approx(plain, abs=0.02)
    assert width[0] > 1.2 * width[1]


def test_clusters_are_resampled_together():
    rng = np.random.default_rng(0)
    common = rng.random(60) < 0.5
    refuses, clusters = np.repeat(common, 10).tolist(), np.repeat(np.arange(60), 10).astype(str)
    error = _error(950, 1000, 950, 1000)
    alone = corrected_rate(refuses, error).corrected
    together = corrected_rate(refuses, error, clusters=list(clusters)).corrected
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


@pytest.mark.parametrize("error", [_error(0, 0, 9, 10), _error(5, 10, 5, 10), _error(1, 10, 1, 10)])
def test_a_judge_that_knows_nothing_corrects_nothing(error):
    found = corrected_rate(_refuses(30, 100), error)
    assert found.corrected is None
    assert found.uncorrected.value == pytest.approx(0.3)


def test_a_rate_of_nothing_is_no_rate():
    found = corrected_rate([], _error(9, 10, 9, 10))
    assert (found.uncorrected, found.corrected) == (None, None)


def test_a_rate_stays_a_share_and_its_interval_holds_it():
    for k in (0, 3, 97, 100):
        found = corrected_rate(_refuses(k, 100), _error(90, 100, 90, 100)).corrected
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.high - found.low > 0.03  # Wilson's interval of 0/100 is [0, 0.037]


def _coverage(simulations, p, n=150, labelled=60, se=0.85, sp=0.9):
    rng = np.random.default_rng(7)
    inside = 0
    for i in range(simulations):
        truth = rng.random(n) < p
        said = np.where(truth, rng.random(n) < se, rng.random(n) > sp)
        error = _error(rng.binomial(labelled, se), labelled, rng.binomial(labelled, sp), labelled)
        found = corrected_rate(said.tolist(), error, resamples=500, seed=i).corrected
        inside += found.low <= p <= found.high
    return inside / simulations


def test_the_interval_covers_short():
    assert 0.91 <= _coverage(200, 0.6) <= 0.99


@pytest.mark.verify
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_interval_covers(p):
    """Near the ends it is cut at 0 and 1 and so covers more, never less."""
    assert 0.93 <= _coverage(2000, p) <= 0.985
