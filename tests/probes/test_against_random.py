"""A chosen set against random ones: closed forms, and a null that is no discovery."""

import numpy as np
import pytest
from scipy.stats import binom, kstest, ttest_1samp, ttest_ind

from mechprobe.errors import SpecError
from mechprobe.probes.against_random import excess_over_random, settled


def test_without_spread_between_prompts_it_is_a_case_against_controls():
    means = np.random.default_rng(0).normal(size=20)
    random = np.repeat(means[:, None], 30, axis=1)
    found, p = excess_over_random(np.full(30, 2.5), random)
    expected = ttest_ind([2.5], means)  # pooled: the single case has no variance of its own
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.value == pytest.approx(2.5 - means.mean())


def test_without_spread_between_draws_it_is_a_paired_t_test():
    rng = np.random.default_rng(1)
    chosen, same = rng.normal(0.3, 1, 25), rng.normal(size=25)
    found, p = excess_over_random(chosen, np.repeat(same[None], 20, axis=0))
    expected = ttest_1samp(chosen - same, 0)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.baseline == pytest.approx(same.mean())
    assert found.effect == pytest.approx((chosen - same).mean() / (chosen - same).std(ddof=1))


def simulated(rng, excess=0.0, draws=20, prompts=40):
    """Sets differ by 0.1, prompts by 1, and each set on each prompt by 0.3."""
    sets = rng.normal(0, 0.1, draws + 1)[:, None] + rng.normal(0, 1, prompts)
    sets += rng.normal(0, 0.3, sets.shape)
    return sets[0] + excess, sets[1:]


def test_a_chosen_set_that_is_one_more_draw_is_found_as_often_as_chance_has_it():
    rng = np.random.default_rng(2)
    found = [excess_over_random(*simulated(rng)) for _ in range(600)]
    ps = [p for _, p in found]
    assert kstest(ps, "uniform").pvalue > 0.01
    covered = sum(shift.low <= 0 <= shift.high for shift, _ in found)
    assert covered >= binom.ppf(0.001, 600, 0.95)
    # the spread between prompts alone takes the luck of the draw for an effect
    rng = np.random.default_rng(2)
    pairs = [simulated(rng) for _ in range(600)]
    naive = [ttest_1samp(a - b.mean(axis=0), 0).pvalue < 0.05 for a, b in pairs]
    assert np.mean(naive) > 0.25


def test_a_true_excess_is_found():
    rng = np.random.default_rng(3)
    ps = [excess_over_random(*simulated(rng, excess=0.6))[1] for _ in range(100)]
    assert np.mean(np.array(ps) < 0.05) > 0.95


def test_interval_and_p_say_the_same():
    rng = np.random.default_rng(4)
    found = [excess_over_random(*simulated(rng, 0.25, rng.integers(2, 9), 12)) for _ in range(300)]
    apart = [shift.low > 0 or shift.high < 0 for shift, _ in found]
    assert apart == [p < 0.05 for _, p in found]
    assert 0 < sum(apart) < 300


def test_no_spread_at_all():
    nothing, p = excess_over_random(np.zeros(4), np.zeros((3, 4)))
    assert (nothing.value, nothing.low, nothing.high, p) == (0, 0, 0, None)
    something, p = excess_over_random(np.ones(4), np.zeros((3, 4)))
    assert (something.low, something.high, p) == (1, 1, 0)


def test_the_order_of_summation_is_no_discovery():
    """Float32 sums that went another way, all a little lower: once `-0.000, p = 0.007`."""
    rng = np.random.default_rng(5)
    random = rng.normal(0, 1e-6, (20, 40))
    chosen = rng.normal(-5e-6, 1e-6, 40)
    assert ttest_1samp(chosen - random.mean(axis=0), 0).pvalue < 1e-9
    for level in (0.0, 0.7):  # nothing was returned, or the same by all
        found, p = excess_over_random(chosen + level, random + level)
        assert (found.value, found.low, found.high, found.effect, p) == (0, 0, 0, None, None)
        assert found.baseline == pytest.approx(level, abs=1e-6)
        assert str(found) == "+0.000 [+0.000, +0.000]"
    found, p = excess_over_random(chosen + 1e-3, random)
    assert found.low > 0 and p < 0.05


def test_what_rounding_moved_is_where_it_was():
    before = np.array([1.0, -2.0, 3.0])
    assert settled(before + np.array([1e-6, -2e-6, 9e-5]), before) is before
    moved = before + np.array([0, 0, 2e-4])
    assert settled(moved, before) is moved


@pytest.mark.parametrize("shape", [(1, 9), (9, 1)])
def test_one_draw_or_one_prompt_is_too_few(shape):
    with pytest.raises(SpecError, match="take 2 at least"):
        excess_over_random(np.zeros(shape[1]), np.zeros(shape))
