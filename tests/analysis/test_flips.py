"""SSI and DFR against values computed by hand and by enumeration."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, dirichlet_multinomial

from mechprobe.analysis.flips import (
    bounds,
    fit_dirichlet,
    flip_curve,
    flipping,
    stability,
    unstable,
)

COUNTS = [[5, 0, 0], [4, 1, 0], [3, 1, 1], [2, 0, 2], [0, 0, 0], [0, 0, 5], [0, 1, 0]]


def _flipping(parameters, k):
    """Chance that k samples of a prompt are not unanimous under a Dirichlet-multinomial."""
    law = dirichlet_multinomial(parameters, k)
    return 1 - sum(
        law.pmf(np.eye(len(parameters), dtype=int)[i] * k) for i in range(len(parameters))
    )


def test_stability_is_the_share_of_the_commonest_label():
    found = stability(COUNTS)
    assert found[[0, 1, 2, 3, 5]] == pytest.approx([1, 0.8, 0.6, 0.5, 1])
    assert np.isnan(found[[4, 6]]).all()  # none decided; and one, which agrees with itself


@pytest.mark.parametrize(
    ("counts", "below"),
    [([4, 1, 0], False), ([8, 2, 0], False), ([7, 2, 0], True), ([3, 1, 0], True),
     ([12, 3, 0], False), ([0, 0, 0], False), ([0, 0, 1], False)],
)  # fmt: skip
def test_exactly_four_of_five_is_stable(counts, below):
    assert unstable([counts]).tolist() == [below]


def test_flipping_by_hand():
    assert flipping(COUNTS, 2)[:4] == pytest.approx([0, 1 - 6 / 10, 1 - 3 / 10, 1 - 2 / 6])
    assert flipping(COUNTS, 1)[:4] == pytest.approx([0, 0, 0, 0])
    five = flipping(COUNTS, 5)
    assert five[[0, 1, 2, 5]].tolist() == [0, 1, 1, 0]
    assert np.isnan(five[[3, 4]]).all()  # fewer than five were decided
    with pytest.raises(ValueError, match="one sample is needed"):
        flipping(COUNTS, 0)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.8])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_up_to_the_samples_that_were_drawn_it_is_unbiased(p, k):
    """The mean over everything that five samples can show is the chance itself."""
    n = 5
    outcomes = np.array([[a, 0, n - a] for a in range(n + 1)])
    mean = float(binom.pmf(outcomes[:, 0], n, p) @ flipping(outcomes, k))
    assert mean == pytest.approx(1 - p**k - (1 - p) ** k)


def test_the_curve_rises_and_says_where_it_is_extrapolated():
    curve = flip_curve(COUNTS, 5, range(1, 21))
    assert [point.k for point in curve] == list(range(1, 21))
    assert [point.extrapolated for point in curve] == [False] * 5 + [True] * 15
    assert curve[4].value == pytest.approx(0.5)
    assert {point.n for point in curve} == {4}  # the same prompts everywhere
    assert curve[1].value == pytest.approx((0 + 4 / 10 + 7 / 10 + 0) / 4)
    values = [point.value for point in curve]
    assert all(a < b < 1 for a, b in pairwise(values))


def test_a_prompt_with_an_undecided_sample_does_not_bend_the_curve():
    """It wavers and has two decided samples: in DFR(2) alone it would lift that above DFR(5)."""
    curve = flip_curve([[5, 0, 0]] * 9 + [[1, 0, 1]] * 9, 5, range(1, 6))
    assert [(point.value, point.n) for point in curve] == [(0.0, 9)] * 5


def test_extrapolation_by_hand():
    """Parameters (1, 1): k samples agree with chance 2 / (k + 1), so by k = 9 from 4 half do."""
    counts = np.array([[a, 0, 4 - a] for a in range(5)] * 40)  # as uniform shares give them
    assert fit_dirichlet(counts) == pytest.approx([1, 1], abs=1e-3)
    (found,) = flip_curve(counts, 4, [9])
    assert found.value == pytest.approx(1 - 2 / 5 * (2 / 10) / (2 / 5), abs=1e-4)
    # two kinds of prompts that never waver and one that always does: the model has it otherwise,
    # and what was seen is kept
    mixed = [[4, 0, 0]] * 50 + [[0, 0, 4]] * 50 + [[2, 0, 2]] * 20
    fit = fit_dirichlet(mixed)
    steady = (1 - _flipping(fit, 9)) / (1 - _flipping(fit, 4))
    (found,) = flip_curve(mixed, 4, [9])
    assert found.value == pytest.approx(1 - 100 / 120 * steady)
    assert abs(found.value - _flipping(fit, 9)) > 0.005


@pytest.mark.parametrize("k", [5, 40, 60])
def test_prompts_that_all_split_alike_have_a_curve(k):
    """Less spread than chance alone gives: the multinomial limit, where rounding once failed."""
    half = k // 2
    curve = flip_curve(np.tile([[half, 0, k - half]], (20, 1)), k, [k, k + 1, 4 * k])
    assert [point.value for point in curve] == pytest.approx([1, 1, 1])
    # as many labels as of one cell and temperature of the demo, and as even over its prompts
    few = flip_curve([[4, 0, 1]] * 30 + [[3, 0, 2]] * 20 + [[5, 0, 0]] * 8, 5, [5, 6, 20])
    assert few[0].value < few[1].value < few[2].value < 1


def test_bounds_over_all_prompts():
    # two or more labels: three; unanimous whatever the rest: two; the others may
    assert bounds(COUNTS, 5) == (3, 5)
    assert bounds(np.zeros((0, 3), int), 5) == (0, 0)


def test_unanimous_prompts_say_nothing_about_more_samples():
    curve = flip_curve([[5, 0, 0], [0, 0, 5]], 5, [5, 6])
    assert (curve[0].value, curve[1].value) == (0.0, None)
    assert curve[1].why == "all 2 prompts were unanimous, which says nothing of more samples"
    assert fit_dirichlet([[5, 0, 0], [0, 0, 5]]) is None
    assert flip_curve([[0, 0, 0]], 5, [2])[0].value is None


@pytest.mark.parametrize("law", [(0.6, 0.2, 0.3), (4.0, 0.5, 1.0), (0.1, 0.02, 0.1)])
def test_extrapolation_finds_what_more_samples_would_show(law):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(law, 3000)
    few = np.array([rng.multinomial(5, share) for share in shares])
    (found,) = flip_curve(few, 5, [20])
    truth = float(np.mean(1 - (shares**20).sum(axis=1)))
    assert truth == pytest.approx(_flipping(law, 20), abs=0.03)
    assert found.value == pytest.approx(truth, abs=0.03)
    # the plain shares of five samples fall short of it
    assert np.mean(1 - ((few / 5) ** 20).sum(axis=1)) < truth - 0.03
