import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr

from mechprobe.analysis.grouped import (
    Groups,
    correlation,
    correlations_within,
    correlations_without,
    ranks_within,
)


def _by_hand(x, y):
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pearsonr(x, y).statistic


values = st.integers(-9, 9).map(float)
rows = st.lists(st.tuples(values, values, st.sampled_from("abcd")), min_size=3, max_size=24)


@given(rows)
@settings(max_examples=150, deadline=None)
def test_within_and_without_are_those_of_the_rows_one_by_one(given_rows):
    x, y = (np.array([row[k] for row in given_rows]) for k in (0, 1))
    names = np.array([row[2] for row in given_rows])
    groups = Groups.of(names)
    within = correlations_within(x, y, groups)
    without = correlations_without(x, y, groups)
    for k, name in enumerate(groups.names):
        inside = names == name
        np.testing.assert_allclose(within[k], _by_hand(x[inside], y[inside]), atol=1e-9)
        np.testing.assert_allclose(without[k], _by_hand(x[~inside], y[~inside]), atol=1e-9)
    np.testing.assert_allclose(correlation(x, y), _by_hand(x, y), atol=1e-12)


def test_a_group_that_held_nearly_all_of_the_spread_leaves_no_rounding_behind():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12)) * 1e-7
    x[0], y[0] = 1e3, -1e3
    groups = Groups.of(np.arange(12))
    expected = pearsonr(x[1:], y[1:]).statistic
    assert correlations_without(x, y, groups)[0] == pytest.approx(expected, abs=1e-9)


def test_a_difference_by_rounding_alone_is_no_spread():
    x = np.array([0.1 + 0.2, 0.3, 0.3, 0.3])
    assert len(set(x)) == 2
    assert np.isnan(correlation(x, np.arange(4.0)))
    one = Groups.of(["m"] * 4)
    assert np.isnan(correlations_within(x, np.arange(4.0), one)).all()


def test_ranks_within_groups_are_scipys():
    rng = np.random.default_rng(1)
    x, names = rng.integers(0, 5, 40).astype(float), rng.choice(list("ab"), 40)
    found = ranks_within(x, Groups.of(names))
    for name in "ab":
        np.testing.assert_array_equal(found[names == name], rankdata(x[names == name]))
    y = rng.normal(size=40)
    groups = Groups.of(names)
    rho = correlations_within(found, ranks_within(y, groups), groups)
    for k, name in enumerate(groups.names):
        inside = names == name
        assert rho[k] == pytest.approx(spearmanr(x[inside], y[inside]).statistic, abs=1e-12)
