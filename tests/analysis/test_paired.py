"""Counts of changed prompts against what other libraries, enumeration and chance say."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from mechprobe.analysis import paired


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (6, 0), (12, 3), (40, 41)])
def test_mcnemar_is_that_of_statsmodels(lost, gained):
    table = [[50, lost], [gained, 50]]
    assert paired.mcnemar_p(lost, gained) == pytest.approx(mcnemar(table, exact=True).pvalue)


@pytest.mark.parametrize(("lost", "gained"), [(3, 0), (7, 2), (22, 9)])
def test_single_clusters_flip_signs_as_mcnemar_does(lost, gained):
    nets = [-1] * lost + [1] * gained + [0] * 30
    expected = binomtest(gained, lost + gained, 0.5).pvalue
    assert paired.sign_flip_p(nets) == pytest.approx(expected)


@pytest.mark.parametrize("nets", [[2, 2, 2, -1, 1], [-3, -3, 1, 1, 2], [0, 0], [4], [-2, 3, -5]])
def test_sign_flips_of_clusters_are_enumerated(nets):
    sums = [
        sum(s * x for s, x in zip(signs, nets, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(nets))
    ]
    expected = np.mean([abs(s) >= abs(sum(nets)) for s in sums])
    assert paired.sign_flip_p(nets) == pytest.approx(expected)


@pytest.mark.parametrize(("lost", "gained", "n"), [(7, 0, 400), (3, 5, 220), (12, 9, 300)])
def test_the_score_test_is_taken_at_the_likeliest_table_at_the_margin(lost, gained, n):
    # by numerical maximisation of the likelihood over tables whose difference is the margin
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    margin = 0.03
    sides = []
    for b, c in ((lost, gained), (gained, lost)):

        def loss(q, b=b, c=c):
            p = q + margin
            return -(b * np.log(p) + c * np.log(q) + (n - b - c) * np.log(1 - p - q))

        q = minimize_scalar(loss, bounds=(1e-12, 0.4), method="bounded", options={"xatol": 1e-12}).x
        error = np.sqrt(n * (2 * q + margin - margin**2))
        sides.append(norm.cdf((b - c - n * margin) / error))
    assert paired.equivalence_p(lost, gained, n) == pytest.approx(max(sides), rel=1e-3)


def test_few_changes_in_one_direction_are_not_equivalent_too_soon():
    # 3 % of 400 are 12; so few as 7 happen by chance 8 % of the time
    assert paired.equivalence_p(7, 0, 400) > 0.05 > paired.equivalence_p(6, 0, 400)
    wald = norm.cdf((7 / 400 - 0.03) / (np.sqrt(7 / 400 - (7 / 400) ** 2) / 20))
    assert wald < 0.05


def test_the_score_test_nears_statsmodels_as_prompts_grow():
    rng = np.random.default_rng(1)
    apart = []
    for n in (2_000, 200_000):
        before = (rng.random(n) < 0.9).astype(float)
        after = np.where(rng.random(n) < 0.1, 1 - before, before)
        lost, gained = np.sum(after < before), np.sum(after > before)
        margin = (lost - gained) / n + 1.2 * np.sqrt(lost + gained) / n
        mine = paired.equivalence_p(lost, gained, n, margin)
        apart.append(abs(mine - ttost_paired(after, before, -margin, margin)[0]))
    assert apart[1] < 0.001
    assert apart[0] < 0.02


def test_three_points_at_220_need_less_than_2_3_percent_discordant():
    assert paired.equivalence_discordance(220) == pytest.approx(0.0231, abs=5e-5)
    assert paired.smallest_margin(paired.equivalence_discordance(220), 220) == pytest.approx(0.03)


def test_the_smallest_margin_has_its_power():
    rng = np.random.default_rng(3)
    n, discordant = 1000, 0.06
    margin = float(paired.smallest_margin(discordant, n))
    drawn = rng.multinomial(n, [discordant / 2, discordant / 2, 1 - discordant], size=20_000)
    p = paired.equivalence_p(drawn[:, 0], drawn[:, 1], n, margin)
    assert np.mean(p <= 0.05) == pytest.approx(0.8, abs=0.03)


def test_the_power_of_a_fall_is_enumerated():
    n, churn, fall = 8, 0.2, 0.5
    total = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            chance = (
                np.prod(np.arange(1, n + 1, dtype=float))
                / np.prod(np.arange(1, lost + 1, dtype=float))
                / np.prod(np.arange(1, gained + 1, dtype=float))
                / np.prod(np.arange(1, n - lost - gained + 1, dtype=float))
                * (churn / 2 + fall) ** lost
                * (churn / 2) ** gained
                * (1 - churn - fall) ** (n - lost - gained)
            )
            found = lost > gained and binomtest(gained, lost + gained, 0.5).pvalue <= 0.05
            total += chance * found
    assert paired.fall_power(n, [churn], [fall])[0] == pytest.approx(total)


@pytest.mark.parametrize(("n", "churn"), [(220, 0), (220, 20), (60, 4), (1000, 30)])
def test_a_detectable_fall_is_detected_four_times_in_five(n, churn):
    rng = np.random.default_rng(4)
    fall = float(paired.detectable_fall([n], [churn])[0])
    half = churn / n / 2
    drawn = rng.multinomial(n, [half + fall, half, 1 - 2 * half - fall], size=20_000)
    seen = (paired.mcnemar_p(drawn[:, 0], drawn[:, 1]) <= 0.05) & (drawn[:, 0] > drawn[:, 1])
    assert seen.mean() == pytest.approx(0.8, abs=0.015)


def test_five_prompts_can_show_nothing():
    assert np.isnan(paired.detectable_fall([5, 0], [0, 0])).all()


def test_holm_leaves_out_what_was_not_tested():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    found = paired.holm(p)
    assert np.isnan(found[1])
    assert found[[0, 2, 3]] == pytest.approx(multipletests(p[[0, 2, 3]], method="holm")[1])
    assert np.isnan(paired.holm([np.nan])).all()
