import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import (
    binomtest,
    mannwhitneyu,
    pearsonr,
    permutation_test,
    rankdata,
    spearmanr,
)
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from mechprobe.analysis import permuting
from mechprobe.analysis.areas import auc_interval, auc_within, mann_whitney
from mechprobe.analysis.grouped import Groups
from mechprobe.analysis.permuting import permute_within
from mechprobe.analysis.separators import METRICS, separators_section
from mechprobe.errors import TableError
from mechprobe.experiments.probe_columns import probe_columns


def _permuted(x, y, models, permutations=9_999, seed=0):
    return permute_within(
        np.asarray(x, float)[:, None],
        np.asarray(y, float)[:, None],
        Groups.of(models),
        permutations=permutations,
        seed=seed,
    )


def test_one_model_exactly_as_scipy_counts_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6))
    expected = permutation_test(
        (x,), lambda a: pearsonr(a, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    found = _permuted(x, y, ["m"] * 6)
    assert (found.exact, found.arrangements) == (True, 720)
    # scipy doubles the smaller tail, this counts both; they differ where the null is not symmetric
    null = np.asarray(expected.null_distribution)
    both = (np.abs(null) >= abs(expected.statistic) * (1 - 1e-12)).mean()
    assert found.p[0, 0] == pytest.approx(both, abs=1e-12)


def test_labels_of_one_model_exactly_as_mann_whitney():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=12), np.repeat([1.0, 0.0], [4, 8])
    found = _permuted(rankdata(x), y, ["m"] * 12)
    assert (found.exact, found.arrangements) == (True, 495)
    expected = mannwhitneyu(x[:4], x[4:], method="exact").pvalue
    assert found.p[0, 0] == pytest.approx(expected, abs=1e-12)


def test_several_models_exactly_as_counted_by_hand():
    x = np.array([3.0, 1.0, 2.0, 9.0, 9.5, 8.0, 7.0])
    y = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    models = np.array(list("aaabbbb"))
    found = _permuted(x, y, models)
    sums = [
        x[list(one)].sum() + x[[3 + k for k in two]].sum()
        for one in itertools.combinations(range(3), 1)
        for two in itertools.combinations(range(4), 2)
    ]
    centre = np.mean(sums)
    observed = x @ y
    far = sum(abs(s - centre) >= abs(observed - centre) - 1e-12 for s in sums)
    assert found.arrangements == len(sums) == 18
    assert found.p[0, 0] == pytest.approx(far / 18)
    np.testing.assert_allclose(found.low[0, 0], np.quantile(sums, 0.025))
    np.testing.assert_allclose(found.high[0, 0], np.quantile(sums, 0.975))


def test_drawn_permutations_come_near_the_exact_p(monkeypatch):
    rng = np.random.default_rng(2)
    x = rng.normal(size=16)
    y, models = np.tile([1.0, 0, 0, 0], 4), np.repeat(list("abcd"), 4)
    x += y
    exact = _permuted(x, y, models)
    assert (exact.exact, exact.arrangements) == (True, 256)
    monkeypatch.setattr(permuting, "EXACT_UP_TO", 1)
    drawn = _permuted(x, y, models, permutations=40_000)
    assert not drawn.exact
    error = 5 * np.sqrt(exact.p[0, 0] * (1 - exact.p[0, 0]) / 40_000)
    assert drawn.p[0, 0] == pytest.approx(exact.p[0, 0], abs=error + 1 / 40_000)
    monkeypatch.setattr(permuting, "_AT_ONCE", 16 * 7)  # another block size, the same draws
    assert _permuted(x, y, models, permutations=40_000).p[0, 0] == drawn.p[0, 0]


def test_what_differs_between_models_alone_has_no_p():
    models = np.repeat(list("ab"), 6)
    level = np.where(models == "a", 0.1, 0.3)
    assert np.isnan(_permuted(level, np.tile([0.0, 1.0], 6), models).p).all()
    assert np.isnan(_permuted(np.arange(12), (models == "a").astype(float), models).p).all()


@given(st.floats(-50, 50), st.floats(0.1, 10), st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_p_does_not_depend_on_levels_units_or_order(shift, factor, order):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=12), np.tile([1.0, 0, 0, 0], 3)
    models = np.repeat(list("abc"), 4)
    moved = factor * x + shift * (models == "b")
    order = np.array(order)
    found = _permuted(moved[order], y[order], models[order])
    assert found.p[0, 0] == pytest.approx(_permuted(x, y, models).p[0, 0], abs=1e-12)


def test_areas_are_those_of_sklearn():
    rng = np.random.default_rng(4)
    x, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    models = rng.choice(list("abcd"), 60)
    u, area = mann_whitney(x, positive)
    assert area == pytest.approx(roc_auc_score(positive, x), abs=1e-12)
    assert u == mannwhitneyu(x[positive], x[~positive]).statistic
    pairs = [
        (x[i] > x[j]) + 0.5 * (x[i] == x[j])
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
        if models[i] == models[j]
    ]
    assert auc_within(x, positive, Groups.of(models)) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auc_within(x[:2], np.array([True, False]), Groups.of(["a", "b"])) is None


def test_the_interval_of_an_area_is_delongs():
    rng = np.random.default_rng(5)
    a, b = rng.normal(1, 1, 14), rng.normal(0, 1, 25)
    x, positive = np.concatenate([a, b]), np.arange(39) < 14
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    area = wins.mean()
    error = np.sqrt(wins.mean(axis=1).var(ddof=1) / 14 + wins.mean(axis=0).var(ddof=1) / 25)
    low, high = auc_interval(x, positive)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert (logit(low) + logit(high)) / 2 == pytest.approx(logit(area))
    assert (logit(high) - logit(low)) * area * (1 - area) / (2 * 1.959964) == pytest.approx(
        error, rel=1e-6
    )
    apart = auc_interval(np.arange(10.0), np.arange(10) > 6)
    assert apart[1] == 1.0
    assert 0.4 < apart[0] < 0.5  # Wilson's bound of 3 in 3
    assert auc_interval(np.arange(4.0), np.arange(4) > 2) is None


def _frames(n=48, models=6, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    names = [f"m{i}" for i in np.repeat(np.arange(models), n // models)]
    keys = pd.DataFrame({"model": names, "cell": [f"c{i}" for i in range(n)]})
    danger = (np.arange(n) % (n // models) < 2).astype(float)
    level = np.repeat(rng.normal(size=models), n // models)
    matrix = keys.assign(
        entropy_shift=level + rng.normal(size=n) + shift * danger,
        direction_cosine=level + rng.normal(size=n),
        ece=rng.normal(size=n),
    )
    refusal = -20 * danger + rng.normal(size=n) * 5
    outcomes = keys.assign(
        refusal=refusal, danger=danger, hidden=(refusal < -10).astype(float), rtsi=rng.random(n)
    )
    return matrix, outcomes


def test_the_section_is_what_scipy_sklearn_and_statsmodels_say():
    matrix, outcomes = _frames(shift=2.5)
    matrix.loc[:2, "ece"] = np.nan
    found = separators_section(matrix, outcomes.iloc[::-1], permutations=999)
    json.dumps(found, allow_nan=False)
    assert (found["rows"], found["models"], found["permutations"]) == (48, 6, 999)
    assert len(found["metrics"]) == len(METRICS)
    assert found["metrics"][0]["metric"] == "entropy_shift"
    by_name = {one["metric"]: one for one in found["metrics"]}
    for name in ("entropy_shift", "direction_cosine", "ece"):
        there = matrix[name].notna()
        x = matrix[name][there].to_numpy()
        one = by_name[name]
        for graded in ("rtsi", "refusal"):
            y = outcomes[graded][there].to_numpy()
            assert one[graded]["n"] == int(there.sum())
            r, rho = one[graded]["pearson"], one[graded]["spearman"]
            assert r["value"] == pytest.approx(pearsonr(x, y).statistic)
            expected = pearsonr(x, y).confidence_interval()
            assert (r["low"], r["high"]) == pytest.approx(tuple(expected), abs=1e-9)
            assert rho["value"] == pytest.approx(spearmanr(x, y).statistic)
            assert rho["low"] < rho["value"] < rho["high"]
        for side in ("danger", "hidden"):
            y = outcomes[side][there].to_numpy()
            assert one[side]["auc"] == pytest.approx(roc_auc_score(y, x))
            assert one[side]["positive"] == int(y.sum())
            assert one[side]["low"] < one[side]["auc"] < one[side]["high"]
    tested = [by_name[name] for name in ("entropy_shift", "direction_cosine", "ece")]
    p = [one["danger"]["p"] for one in tested]
    assert [one["danger"]["p_holm"] for one in tested] == pytest.approx(
        multipletests(p, method="holm")[1].tolist()
    )
    assert by_name["entropy_shift"]["danger"]["p_holm"] < 0.05
    assert by_name["neurons_ratio"]["danger"]["not_measured"] == "the matrix has no such column"


def test_what_cannot_be_tested_says_why():
    matrix, outcomes = _frames()
    matrix["direction_cosine"] = 0.5
    matrix.loc[2:, "ece"] = np.nan
    outcomes["danger"], outcomes["rtsi"] = 0.0, np.nan
    by_name = {
        one["metric"]: one
        for one in separators_section(matrix, outcomes, permutations=99)["metrics"]
    }
    assert by_name["direction_cosine"]["hidden"]["not_measured"] == (
        "the metric is the same in every row"
    )
    assert by_name["ece"]["refusal"]["not_measured"] == "2 rows have both; at least 3 needed"
    one = by_name["entropy_shift"]
    assert one["danger"]["not_measured"] == "every row is no danger"
    assert one["rtsi"]["not_measured"] == "0 rows have both; at least 3 needed"
    assert one["hidden"]["p"] is not None
    whole = outcomes.assign(hidden=(outcomes["model"] == "m0").astype(float))
    again = separators_section(matrix, whole, permutations=99)["metrics"]
    hidden = next(one["hidden"] for one in again if one["metric"] == "entropy_shift")
    assert hidden["auc"] is not None
    assert hidden["p"] is None
    assert hidden["not_measured"].startswith("no p: within every model")


def test_tables_that_do_not_fit():
    matrix, outcomes = _frames()
    with pytest.raises(TableError, match="outcomes: m0/c0 stands there twice"):
        separators_section(matrix, pd.concat([outcomes, outcomes]))
    with pytest.raises(TableError, match="outcomes: no column 'cell'"):
        separators_section(matrix, outcomes.drop(columns="cell"))
    with pytest.raises(TableError, match="column 'ece' holds what is no number"):
        separators_section(matrix.assign(ece="high"), outcomes)
    assert separators_section(matrix, outcomes.iloc[:0]) == {
        "not_measured": "no row of the matrix has a baseline"
    }


def test_the_metrics_are_columns_that_the_probes_write():
    assert set(METRICS) <= set(probe_columns({}))


@pytest.mark.verify
def test_without_an_effect_separators_keep_their_error_rate():
    """Models differ in level and in how many rows are dangerous; within them nothing goes with it.

    Pooled tests would call this an effect; those within models must not.
    """
    rounds, metrics = 400, [f"x{k}" for k in range(20)]
    single = family = 0
    pooled = 0
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        models = np.repeat(np.arange(6), 8)
        level = rng.normal(size=6)
        danger = np.concatenate(
            [rng.permutation(8) < k for k in np.clip(np.round(2 + 2 * level), 1, 5)]
        ).astype(float)
        values = {name: 2 * level[models] + rng.standard_t(3, size=48) for name in metrics}
        keys = pd.DataFrame({"model": models.astype(str), "cell": np.arange(48).astype(str)})
        found = separators_section(
            keys.assign(**values),
            keys.assign(danger=danger),
            metrics=metrics,
            permutations=499,
            seed=seed,
        )
        p = np.array([one["danger"]["p"] for one in found["metrics"]])
        adjusted = np.array([one["danger"]["p_holm"] for one in found["metrics"]])
        single += int((p <= 0.05).sum())
        family += bool((adjusted <= 0.05).any())
        x = values["x0"]
        pooled += mannwhitneyu(x[danger == 1], x[danger == 0]).pvalue <= 0.05
    # tests of one round share its labels, so only the rounds are independent: one test of each
    assert single / (rounds * len(metrics)) <= 0.06
    assert binomtest(family, rounds, 0.05, alternative="greater").pvalue > 0.01
    assert pooled / rounds > 0.3


@pytest.mark.verify
def test_a_planted_separator_is_found_and_leads():
    rounds, found = 200, 0
    leads = 0
    for seed in range(rounds):
        matrix, outcomes = _frames(seed=seed, shift=2.5)
        one = separators_section(matrix, outcomes, permutations=999, seed=seed)["metrics"][0]
        leads += one["metric"] == "entropy_shift"
        found += one["metric"] == "entropy_shift" and one["danger"]["p_holm"] <= 0.05
    assert found / rounds >= 0.99
    assert leads / rounds >= 0.99
