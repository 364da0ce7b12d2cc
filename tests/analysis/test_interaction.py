"""CDI and the GEE: closed forms, trouble that is said, and simulated factorials."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from mechprobe.analysis.interaction import cdi, gee_interaction

sys.path.insert(0, str(Path(__file__).parent))
from clustered import layout
from simulated import tallies

BENT = {0: -4.0, 0.5: -2.0, 1.0: -1.0, 1.5: -0.7}
"""Log-odds that rise steeply at first: what temperature does to both cells is no line."""
DESIGN = {"prompts": 60, "temperatures": (0, 0.5, 1.0), "k": 5, "a": -1.5, "b": 0.8, "c": 0.8}


def table(rates, k=20, prompts=30):
    """The same counts for every prompt of a temperature, but for a spread that leaves the sum."""
    rows = []
    for at, rate in rates.items():
        for i in range(prompts):
            comply = int(rate * k) + (0 if rate in (0, 1) else (-1) ** i)
            rows.append(
                {"temperature": at, "prompt": str(i), "cluster": str(i), "comply": comply,
                 "decided": k}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_coefficient_is_the_difference_of_log_odds():
    q, f = {0.0: 0.3, 0.5: 0.6}, {0.0: 0.2, 0.5: 0.25}
    found = gee_interaction(table(q), table(f))
    assert found.status == "ok"
    slope = {name: (logit(r[0.5]) - logit(r[0.0])) / 0.5 for name, r in (("q", q), ("f", f))}
    assert found.coefficient == pytest.approx(slope["q"] - slope["f"], abs=1e-6)
    assert found.temperature == pytest.approx(0.5 * slope["f"], abs=1e-6)
    assert found.precision == pytest.approx(logit(0.3) - logit(0.2), abs=1e-6)
    assert (found.answers, found.clusters) == (2 * 2 * 30 * 20, 30)
    assert found.low < found.coefficient < found.high
    reach = (found.high - found.low) / 2
    law = student(30 - 4)  # clusters less coefficients
    assert found.detectable == pytest.approx(reach * (1 + law.ppf(0.8) / law.ppf(0.975)))
    error = reach / law.ppf(0.975)
    assert found.p == pytest.approx(2 * law.sf(found.coefficient / error), rel=1e-6)


def test_answers_of_one_cluster_are_not_taken_for_independent():
    """Every prompt doubled within its cluster: twice the answers, and no more certainty."""
    cell, base = tallies(np.random.default_rng(1), d=0.4, **DESIGN)
    one = gee_interaction(cell, base)
    twice = [
        pd.concat([t, t.assign(prompt=t["prompt"] + "b")], ignore_index=True) for t in (cell, base)
    ]
    two = gee_interaction(*twice)
    assert two.answers == 2 * one.answers
    assert two.coefficient == pytest.approx(one.coefficient, abs=1e-6)
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=1e-4)
    apart = gee_interaction(*[t.assign(cluster=t["prompt"]) for t in twice])
    assert apart.high - apart.low < 0.8 * (one.high - one.low)


@pytest.mark.parametrize(
    ("q", "f", "status", "why"),
    [
        (
            {0.0: 0.0, 1.0: 0.0},
            {0.0: 0.0, 1.0: 0.0},
            "constant",
            "every decided sample of both cells is re",
        ),
        ({0.0: 1.0, 1.0: 1.0}, {0.0: 1.0, 1.0: 1.0}, "constant", "is answered"),
        ({0.0: 1.0, 1.0: 1.0}, {0.0: 0.2, 1.0: 0.4}, "sparse", "0 of 2 temperatures"),
        ({0.0: 0.2, 1.0: 0.4}, {0.0: 0.0, 1.0: 0.0}, "sparse", "0 of 2 temperatures"),
        # at 0 nothing, above it something: what is left is one temperature
        ({0.0: 0.0, 1.0: 0.4}, {0.0: 0.2, 1.0: 0.4}, "sparse", "2 are needed"),
    ],
)
def test_what_cannot_be_estimated_is_said(q, f, status, why):
    found = gee_interaction(table(q), table(f))
    assert found.status == status
    assert why in found.why
    assert (found.coefficient, found.low, found.p, found.detectable) == (None,) * 4


def test_a_temperature_where_hardly_anybody_answers_is_left_out_and_said():
    warm = {0.5: 0.1, 1.0: 0.3}
    cell, base = table({0.0: 0.3, 0.5: 0.4, 1.0: 0.5}), table({0.0: 0.0, **warm})
    found = gee_interaction(cell, base)
    assert (found.status, found.tested, found.left_out) == ("ok", (0.5, 1.0), (0.0,))
    some = base.copy()
    for answered, tested in ((4, (0.5, 1.0)), (5, (0.0, 0.5, 1.0))):  # prompts at T = 0
        some.loc[some.index[:answered], "comply"] = 20
        assert gee_interaction(cell, some).tested == tested
    # as few that refuse are as little
    full = cell.copy()
    full.loc[full["temperature"] == 0, "comply"] = 20
    assert gee_interaction(full, some).left_out == (0.0,)


def test_a_bend_that_both_cells_share_is_no_interaction():
    """The odds of the cell are six times those of its baseline at every temperature."""
    base = {0.0: 0.1, 0.5: 0.4, 1.0: 0.6, 1.5: 0.6}
    found = gee_interaction(table({0.0: 0.4, 0.5: 0.8, 1.0: 0.9, 1.5: 0.9}), table(base))
    assert found.tested == (0.0, 0.5, 1.0, 1.5)
    assert found.coefficient == pytest.approx(0.0, abs=1e-6)
    assert found.precision == pytest.approx(np.log(6), abs=1e-6)
    assert found.temperature == pytest.approx(logit(0.6) - logit(0.1), abs=1e-6)


def test_few_clusters_have_no_robust_variance():
    found = gee_interaction(*[table(r, prompts=9) for r in ({0.0: 0.2, 1.0: 0.5},) * 2])
    assert found.status == "too few clusters"
    assert "9 clusters" in found.why
    # 12 prompts at 0, which is left out, and 6 above it are no more
    cell = table({0.0: 0.0, 0.5: 0.4, 1.0: 0.6}, prompts=12)
    some = cell[(cell["temperature"] == 0) | cell["cluster"].isin([str(i) for i in range(6)])]
    found = gee_interaction(some, some)
    assert (found.status, found.tested, found.clusters) == ("too few clusters", (0.5, 1.0), 6)
    assert "6 clusters of prompts at the tested temperatures" in found.why


def test_cdi_is_the_difference_of_both_differences():
    found = cdi(table({0.0: 0.3, 1.0: 0.6}), table({0.0: 0.25, 1.0: 0.35}), 1.0)
    assert found.value == pytest.approx((0.6 - 0.3) - (0.35 - 0.25))


def test_cdi_resamples_clusters_of_prompts():
    """Every prompt doubled within its cluster leaves the interval as it is."""
    both = tallies(np.random.default_rng(1), d=0.4, **DESIGN)
    one = cdi(*both, 1.0)
    twice = [pd.concat([t, t.assign(prompt=t["prompt"] + "b")], ignore_index=True) for t in both]
    two = cdi(*twice, 1.0)
    assert two.prompts == 2 * one.prompts
    assert (two.low, two.high) == pytest.approx((one.low, one.high))
    apart = cdi(*[t.assign(cluster=t["prompt"]) for t in twice], 1.0)
    assert apart.high - apart.low < 0.8 * (one.high - one.low)


def test_cdi_pairs_the_prompts_of_both_cells():
    """Half of the prompts move in both cells, three in the cell alone: none moves the other way."""

    def moved(prompts):
        rates = pd.DataFrame({"prompt": [str(i) for i in range(30)], "decided": 5})
        hot = rates.assign(temperature=1.0, comply=np.where(np.arange(30) < prompts, 5, 0))
        both = pd.concat([rates.assign(temperature=0.0, comply=0), hot], ignore_index=True)
        return both.assign(cluster=both["prompt"])

    found = cdi(moved(18), moved(15), 1.0)
    assert found.value == pytest.approx(0.1)
    # of one change by prompt; apart, the cells would differ by chance as well
    change = ttest_1samp(np.arange(30) < 3, 0).confidence_interval()
    half = (change.high - change.low) / 2 * np.sqrt(30 / 29)  # each prompt left out once
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_cdi_without_any_difference_has_no_interval():
    found = cdi(table({0.0: 0.0, 1.0: 1.0}), table({0.0: 0.0, 1.0: 0.0}), 1.0)
    assert (found.value, found.low, found.high, found.prompts) == (1.0, None, None, 30)


def test_cdi_of_nine_clusters_has_no_interval():
    cold, hot = {0.0: 0.0, 1.0: 0.5}, {0.0: 0.0, 1.0: 0.25}
    few = [one[one["prompt"].astype(int) < 9] for one in (table(cold), table(hot))]
    found = cdi(*few, 1.0)
    assert (found.prompts, found.low, found.high) == (9, None, None)
    assert found.value == pytest.approx(0.25)


def test_cdi_of_prompts_that_were_never_decided():
    empty = table({0.0: 0.0, 1.0: 0.0}).assign(decided=0)
    found = cdi(empty, table({0.0: 0.2, 1.0: 0.4}), 1.0)
    assert (found.value, found.prompts, found.dropped) == (None, 0, 30)


def _found(seeds, **law):
    fits = [gee_interaction(*tallies(np.random.default_rng(s), **{**DESIGN, **law})) for s in seeds]
    assert np.mean([fit.status == "ok" for fit in fits]) > 0.995
    return [fit for fit in fits if fit.status == "ok"]


CONCAVE = {"temperatures": tuple(BENT), "a": 0.0, "c": BENT}


@pytest.mark.verify
@pytest.mark.parametrize("family", [1, 2])
@pytest.mark.parametrize(
    "law",
    [{}, {**CONCAVE, "b": 2.4}],
    ids=["line", "bend"],
)
def test_the_test_keeps_its_level_where_there_is_no_interaction(law, family):
    """1,500 factorials of 60 prompts; precision and temperature act, but not together."""
    fits = _found(range(1500), d=0.0, family=family, **law)
    share = np.mean([fit.p < 0.05 for fit in fits])
    print(f"clusters of {family}: {share:.3f} of {len(fits)} tests at the 5 % level")
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.verify
@pytest.mark.parametrize(
    ("planted", "law"), [(1.08, {}), (0.85, {**CONCAVE, "b": 1.2})], ids=["line", "bend"]
)
def test_a_planted_interaction_is_found_at_the_stated_power(planted, law):
    """`detectable` is what 80 % power finds: plant that, and four of five tests find it."""
    fits = _found(range(20_000, 21_500), d=planted, **law)
    stated = np.mean([fit.detectable for fit in fits])
    power = np.mean([fit.p < 0.05 for fit in fits])
    print(f"planted {planted}, detectable {stated:.3f}, power {power:.3f}")
    assert stated == pytest.approx(planted, rel=0.03)
    assert power == pytest.approx(0.8, abs=0.04)
    assert np.mean([fit.coefficient for fit in fits]) == pytest.approx(planted, rel=0.05)


@pytest.mark.verify
@pytest.mark.parametrize("d", [0.0, 1.0])
@pytest.mark.parametrize("family", [1, 2, "tens", "unequal"])
def test_the_interval_of_cdi_holds_the_truth(d, family):
    def rate(q, t):
        return expit(DESIGN["a"] + DESIGN["b"] * q + DESIGN["c"] * t + d * q * t)

    truth = rate(1, 1) - rate(1, 0) - rate(0, 1) + rate(0, 0)
    codes = layout(family, 120) if isinstance(family, str) else np.arange(60) // family
    design = {**DESIGN, "prompts": len(codes), "family": codes}
    found = [cdi(*tallies(np.random.default_rng(s), d=d, **design), 1.0) for s in range(800)]
    held = np.mean([one.low <= truth <= one.high for one in found])
    print(f"d = {d}, clusters of {family}: CDI {truth:+.3f} within the interval in {held:.3f}")
    assert held >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 800)
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.02)


@pytest.mark.verify
@pytest.mark.parametrize("name", ["tens", "unequal"])
def test_the_test_keeps_its_level_in_few_and_unequal_clusters(name):
    codes = layout(name, 120)
    fits = _found(range(400), d=0.0, prompts=len(codes), family=codes)
    share = np.mean([fit.p < 0.05 for fit in fits])
    print(f"{name}: {share:.3f} of {len(fits)} tests at the 5 % level")
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
