"""Every test and interval of clustered prompts: level, coverage, and what repetition must not add.

Rows of one cluster are drawn with correlations from 0 to 1, so that the truth is known.
"""

import numpy as np
import pandas as pd
import pytest
from clustered import by_size, changes, layout, normals, outcomes, score_falls, uniforms
from scipy.stats import norm

from mechprobe import stats
from mechprobe.analysis import paired
from mechprobe.analysis.deltas import pair
from mechprobe.analysis.effects import effects
from mechprobe.analysis.instruments import compare_instruments
from mechprobe.analysis.tally import share_of_samples
from mechprobe.behavior.judge_error import ErrorRates, corrected_rate
from mechprobe.behavior.rate import Rate
from mechprobe.errors import TableError
from mechprobe.probes.against_random import excess_over_random
from mechprobe.probes.reliability import ece_shift, reliability

LAYOUTS = ("single", "pairs", "fours", "study", "tens", "unequal")
RHO = (0.0, 0.5, 1.0)
TIMES = 10


def slack(level, trials):
    """Three errors of a share of so many trials."""
    return 3 * np.sqrt(level * (1 - level) / trials)


def measured(change, codes, resamples=400):
    return effects(pair(outcomes(change, codes), resamples=resamples))


def dropped(n, at, value=-1.0):
    found = np.zeros((1, n))
    found[0, list(at)] = value
    return found


# ---- what declaring clusters must and must not do


def test_declaring_clusters_makes_no_claim_easier():
    alone = measured(dropped(220, [0, 70, 140]), layout("single")).iloc[0]
    assert alone.tost_p == pytest.approx(0.0774, abs=1e-4)  # Tango's of three losses of 220
    for name in ("pairs", "fours", "study"):
        row = measured(dropped(220, [0, 70, 140]), layout(name)).iloc[0]
        assert row.tost_p > alone.tost_p
        assert row.p >= alone.p
        assert row.high - row.low > alone.high - alone.low
        assert row.margin > alone.margin
        assert row.mde > alone.mde


@pytest.mark.parametrize("seed", range(2))
def test_a_claim_of_clusters_is_one_of_single_prompts_too(seed):
    rng = np.random.default_rng(seed)
    loss, gain = rng.uniform(0, 0.06, 2)
    drawn = changes(rng, 25, layout("pairs"), rng.random(), loss, gain)
    single = measured(drawn, layout("single"))
    for name in ("pairs", "fours", "study"):
        grouped = measured(drawn, layout(name))
        claimed = grouped.tost_p <= 0.5
        assert (grouped.tost_p[claimed] >= single.tost_p[claimed] - 1e-12).all()
        assert (grouped.p >= single.p).all()
        outside = (grouped.low > 0) | (grouped.high < 0)
        assert outside[grouped.p <= 0.05].all()


@pytest.mark.parametrize("name", ["single", "pairs", "study"])
@pytest.mark.parametrize("kind", ["binary", "score", "few"])
def test_rows_repeated_as_one_cluster_add_nothing(name, kind):
    rng = np.random.default_rng(1)
    codes = layout(name)
    if kind == "binary":
        drawn = changes(rng, 6, codes, 0.5, 0.05, 0.02)
    elif kind == "score":
        drawn = -0.02 + 0.05 * normals(rng, 6, codes, 0.5)
    else:
        drawn = changes(rng, 6, codes, 0.5, 0.05, 0.02) / 2
    once = measured(drawn, codes)
    many = measured(np.repeat(drawn, TIMES, axis=1), np.repeat(codes, TIMES))
    columns = ["low", "high", "p", "p_holm", "tost_p", "margin", "mde"]
    np.testing.assert_allclose(
        many[columns].to_numpy(float), once[columns].to_numpy(float), rtol=1e-6, atol=1e-9
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [8, 40, 220])
def test_scores_that_cancel_within_pairs_are_no_surer_for_it(n):
    change = np.tile([0.4, -0.4], n // 2)[None]
    single, pairs = (measured(change, layout(name, n)).iloc[0] for name in ("single", "pairs"))
    error = 0.4 / np.sqrt(n)  # of a mean of independent changes
    assert single.high > 1.96 * error
    assert pairs.high >= single.high
    assert single.mde > 2.8 * error
    assert (pairs[["tost_p", "margin", "mde"]] >= single[["tost_p", "margin", "mde"]]).all()
    assert pairs.tost_p > 0.05
    shift = {
        most: stats.paired_shift(
            0.5 + change[0], np.full(n, 0.5), most=most, clusters=layout("pairs", n)
        )
        for most in (None, 1)
    }
    assert all(found.high > 1.96 * error for found in shift.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 4, 8, 40])
@pytest.mark.parametrize("fall", [0.001, 0.029])
def test_few_scores_that_fall_alike_show_nothing(n, fall):
    row = measured(np.full((1, n), -fall), layout("single", n)).iloc[0]
    assert row.tost_p > 0.05
    assert row.high - row.low > 2 * 0.03
    assert row.mde > 0.03


@pytest.mark.parametrize("seed", range(3))
def test_declared_clusters_make_no_claim_of_scores_easier(seed):
    rng = np.random.default_rng(seed)
    n = 220
    drawn = np.concatenate(
        [
            rng.normal(0, 0.02, (10, n)),
            rng.normal(0, 0.2, (10, n)).clip(-1, 1) * (rng.random((10, n)) < 0.5),
            np.tile([0.02, -0.02], (5, n // 2)),
        ]
    )
    single = measured(drawn, layout("single", n))
    for name in LAYOUTS[1:]:
        codes = rng.permutation(layout(name, n)) if seed else layout(name, n)
        grouped = measured(drawn, codes)
        claimed = grouped.tost_p <= 0.5
        assert (grouped.tost_p[claimed] >= single.tost_p[claimed] - 1e-12).all()
        for column in ("high", "margin", "mde"):
            assert (grouped[column] >= single[column] - 1e-9).all()
        assert (grouped.low <= single.low + 1e-9).all()


@pytest.mark.parametrize("column", ["cluster", "prompt"])
def test_a_list_is_no_name(column):
    frame = outcomes(dropped(4, [0]), np.arange(4))
    frame[column] = [["a"]] * len(frame)
    with pytest.raises(TableError, match=rf"column '{column}': .*list.*write a text or a number"):
        pair(frame)
    with pytest.raises(ValueError, match=r"clusters: .*list"):
        stats.mean_estimate([0.0, 1.0], clusters=[["a"], ["b"]])


def _interval(found):
    return found.low, found.high


@pytest.mark.parametrize("name", ["single", "pairs"])
def test_no_estimate_gains_from_repetition(name):
    rng = np.random.default_rng(2)
    codes = layout(name, 120)
    u, x = uniforms(rng, 2, codes, 0.5), normals(rng, 3, codes, 0.5)
    p = np.clip(norm.cdf(1 + x[0]), 0.01, 0.99)
    y, z = (u < p).astype(float)
    q = np.clip(p + 0.1 * x[1], 0.0, 1.0)
    labels = np.where(u < 0.4, "a", np.where(u < 0.7, "b", "c"))

    def all_of(times):
        def r(values):
            return np.repeat(values, times)

        c = r(codes)
        a = x[2] + 1
        error = ErrorRates(Rate.of(45, 50), Rate.of(47, 50), 0)
        both = reliability(r(p), r(y), clusters=c)
        yield stats.mean_estimate(r(np.exp(x[0])), clusters=c)
        yield stats.share_estimate(r(y), clusters=c)
        yield stats.share_estimate(r(p), clusters=c)
        yield stats.paired_shift(r(y), r(z), clusters=c, most=1)
        yield stats.paired_shift(r(p), r(q), clusters=c, most=1)
        yield stats.paired_shift(r(x[0]), r(x[1]), clusters=c)
        yield stats.auroc_estimate(r(a), r(x[1]), clusters=(c, c))
        yield stats.auroc_estimate(r(a), r(x[1]), clusters=(c, c + 1000))
        yield Rate.among(r(y), c)
        yield share_of_samples(r(y.astype(int)), np.ones(len(c), int), c)
        yield stats.kappa_estimate(r(labels[0]).tolist(), r(labels[1]).tolist(), clusters=c)
        yield corrected_rate(r(y), error, clusters=c).corrected
        yield excess_over_random(r(x[0]), np.stack([r(x[1]), r(x[2])]), c)[0]
        yield both.outcome
        yield both.brier
        yield both.gap
        yield both.auroc
        yield ece_shift((r(p), r(y)), (r(q), r(z)), clusters=c)

    for once, many in zip(all_of(1), all_of(TIMES), strict=True):
        assert _interval(many) == pytest.approx(_interval(once), abs=1e-6)
    # the sample variances in d' have n - 1 below them
    sides = [(np.repeat(x[0] + 1, t), np.repeat(x[1], t), np.repeat(codes, t)) for t in (1, TIMES)]
    once, many = (stats.dprime_estimate(a, b, clusters=(c, c + 1000)) for a, b, c in sides)
    assert many.high - many.low == pytest.approx(once.high - once.low, rel=0.02)


def test_repetition_makes_no_calibration_test_surer():
    rng = np.random.default_rng(5)
    codes = layout("single", 160)
    p = rng.uniform(0.5, 1, 160)
    y = (rng.random(160) < p - 0.04).astype(float)
    once, many = (
        reliability(np.repeat(p, t), np.repeat(y, t), clusters=np.repeat(codes, t))
        for t in (1, TIMES)
    )
    assert many.p_calibrated == pytest.approx(once.p_calibrated, abs=0.06)
    assert many.ece_limit == pytest.approx(once.ece_limit, rel=0.1)
    alone = reliability(np.repeat(p, TIMES), np.repeat(y, TIMES))
    assert alone.p_calibrated < 0.01 < once.p_calibrated


@pytest.mark.parametrize("n", [20, 220])
def test_a_thing_against_itself_is_as_sure_as_its_prompts_are_many(n):
    y = np.random.default_rng(0).random(n) < 0.7
    end = 3.8414588 / (n + 3.8414588)  # Tango's interval without a change: z² / (n + z²)
    found = stats.paired_shift(y, y, most=1)
    assert (found.value, found.low, found.high) == pytest.approx((0, -end, end))
    found = stats.paired_shift(y, y, most=1, clusters=np.arange(n) // 2)
    half = 3.8414588 / (n / 2 + 3.8414588)
    assert (found.low, found.high) == pytest.approx((-half, half))
    p = np.linspace(0.3, 1, n)
    assert _interval(ece_shift((p, y), (p, y))) == pytest.approx((-end, end))


def test_prompts_without_a_cluster_are_their_own():
    frame = outcomes(dropped(20, [0, 1, 7]), np.arange(20) // 2)
    some = frame.prompt.isin(["6", "7", "8", "9"])
    own = frame.cluster.where(~some, "own " + frame.prompt)
    expected = effects(pair(frame.assign(cluster=own)))
    for missing in (np.nan, None):
        found = effects(
            pair(frame.assign(cluster=frame.cluster.astype(object).where(~some, missing)))
        )
        assert found.clusters.tolist() == [12]
        assert found.equals(expected)
    codes = stats.cluster_codes(["a", None, "a", float("nan"), "b"], 5)
    assert len(set(codes.tolist())) == 4
    assert codes[0] == codes[2]
    first = frame.assign(instrument="one", cluster=None)
    both = compare_instruments(pd.concat([first, first.assign(instrument="two")]), "one", "two")
    assert _interval(both.share) == pytest.approx(stats.wilson(20, 20))


# ---- the equivalence test


@pytest.mark.parametrize(
    ("name", "n", "rho", "churn", "rows"),
    [(name, 220, 0.5, 0.0, 300) for name in LAYOUTS]
    + [
        pytest.param(name, n, rho, churn, 2000, marks=pytest.mark.verify)
        for name in LAYOUTS
        for n in (40, 100, 120, 220, 400)
        for rho in RHO
        for churn in (0.0, 0.02)
    ],
)
def test_equivalence_is_seldom_claimed_of_a_fall_of_three_points(name, n, rho, churn, rows):
    codes = layout(name, n)
    drawn = changes(np.random.default_rng(3), rows, codes, rho, 0.03 + churn, churn)
    assert (measured(drawn, codes).tost_p <= 0.05).mean() <= 0.05 + slack(0.05, rows)


@pytest.mark.parametrize(
    ("name", "n", "rows"),
    [("study", 240, 300)]
    + [
        pytest.param(name, n, 1000, marks=pytest.mark.verify)
        for name, sizes in (("study", (220, 240, 300, 360, 440)), ("unequal", (220, 440, 660)))
        for n in sizes
    ],
)
def test_equivalence_is_seldom_claimed_where_only_the_largest_clusters_fall(name, n, rows):
    codes = layout(name, n)
    share = 0.03 * len(codes) / (np.bincount(codes)[codes] == np.bincount(codes).max()).sum()
    found = measured(by_size(np.random.default_rng(13), rows, codes, share, 0.03), codes)
    # Tango's own error at some n is 6.4 % (docs/analysis.md)
    assert (found.tost_p <= 0.05).mean() <= 0.064 + slack(0.064, rows)


@pytest.mark.parametrize(
    ("name", "n", "share", "rows"),
    [("study", 220, 0.05, 300)]
    + [
        pytest.param(name, n, share, 1000, marks=pytest.mark.verify)
        for name in ("study", "unequal")
        for n in (220, 440)
        for share in (0.03, 0.05, 0.15)
    ],
)
def test_tests_and_intervals_hold_where_size_and_direction_go_together(name, n, share, rows):
    codes = layout(name, n)
    found = measured(by_size(np.random.default_rng(14), rows, codes, share, 0.0), codes)
    assert (found.p <= 0.05).mean() <= 0.05 + slack(0.05, rows)
    assert ((found.low <= 0) & (found.high >= 0)).mean() >= 0.95 - slack(0.95, rows)


@pytest.mark.verify
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fall_of_the_detectable_size_is_found_at_the_stated_power(name):
    codes, rows = layout(name), 1000
    fall = float(measured(np.zeros((1, len(codes))), codes).mde.iloc[0])
    for rho in RHO:
        found = measured(changes(np.random.default_rng(12), rows, codes, rho, fall, 0.0), codes)
        assert (found.p <= 0.05).mean() >= 0.8 - slack(0.8, rows), rho


@pytest.mark.parametrize(
    ("name", "n", "rho", "shape", "rows"),
    [
        ("single", 40, 0.0, "mixed", 300),
        ("fours", 40, 1.0, "mixed", 300),
        ("tens", 40, 1.0, "exponential", 300),
        ("tens", 220, 1.0, "mixed", 300),
        ("unequal", 220, 1.0, "mixed", 300),
    ]
    + [
        pytest.param(name, n, rho, shape, 1000, marks=pytest.mark.verify)
        for name in LAYOUTS
        for n in (40, 100, 220)
        for rho in RHO
        for shape in ("mixed", "exponential", "normal", "rare")
    ],
)
def test_equivalence_of_scores_is_seldom_claimed_of_a_fall_of_three_points(
    name, n, rho, shape, rows
):
    codes = layout(name, n)
    found = measured(score_falls(np.random.default_rng(10), rows, codes, rho, shape), codes)
    assert (found.tost_p <= 0.05).mean() <= 0.05 + slack(0.05, rows)
    covered = ((found.low <= -0.03) & (found.high >= -0.03)).mean()
    assert covered >= 0.95 - slack(0.95, rows)


def test_equivalence_of_scores_is_claimed_where_they_hardly_change():
    codes = layout("single")
    drawn = np.random.default_rng(11).normal(0, 0.1, (60, 220))
    assert (measured(drawn, codes).tost_p <= 0.05).mean() > 0.8


@pytest.mark.parametrize("name", ["single", "pairs"])
def test_equivalence_is_claimed_where_nothing_changes(name):
    rng = np.random.default_rng(4)
    drawn = changes(rng, 60, layout(name, 600), 0.5, 0.004, 0.004)
    assert (measured(drawn, layout(name, 600)).tost_p <= 0.05).mean() > 0.8


@pytest.mark.parametrize("name", LAYOUTS[:4])
@pytest.mark.parametrize("lost", [0, 4, 12])
def test_the_smallest_margin_is_one_that_the_test_claims(name, lost):
    """Of as many losses as gains, spread over clusters."""
    codes = layout(name)
    drawn = dropped(220, range(0, 5 * lost, 5)) + dropped(220, range(110, 110 + 5 * lost, 5), 1)
    row = measured(drawn, codes).iloc[0]
    effect = max(row.margin * 220 / (2.9264 * max(np.sqrt(2 * lost), 1)), 1)
    p = paired.equivalence_p(lost, lost, 220, row.margin, effect ** (2 if lost else 1))
    assert p < 0.05


# ---- intervals


@pytest.mark.parametrize(
    ("name", "n", "rho", "rates", "rows"),
    [(name, 120, 0.5, (0.03, 0.01), 200) for name in LAYOUTS]
    + [("unequal", 220, 1.0, (0.25, 0.25), 300), ("unequal", 220, 1.0, (0.5, 0.0), 300)]
    + [
        pytest.param(name, n, rho, rates, 1000, marks=pytest.mark.verify)
        for name in LAYOUTS
        for n in (60, 220)
        for rho in RHO
        for rates in ((0.003, 0.0), (0.03, 0.03), (0.25, 0.02), (0.25, 0.25), (0.5, 0.0))
    ],
)
def test_intervals_of_paired_differences_cover(name, n, rho, rates, rows):
    codes = layout(name, n)
    found = measured(changes(np.random.default_rng(6), rows, codes, rho, *rates), codes)
    truth = rates[1] - rates[0]
    covered = ((found.low <= truth) & (truth <= found.high)).mean()
    assert covered >= 0.95 - slack(0.95, rows)
    assert (found.high > found.low).all()


@pytest.mark.parametrize(
    ("name", "rho", "rows"),
    [("study", 0.5, 150)]
    + [pytest.param(name, rho, 1000, marks=pytest.mark.verify) for name in LAYOUTS for rho in RHO],
)
def test_intervals_of_scores_cover(name, rho, rows):
    codes = layout(name)
    change = -0.03 + 0.1 * normals(np.random.default_rng(7), rows, codes, rho)
    found = measured(change, codes, resamples=1000)
    covered = ((found.low <= -0.03) & (found.high >= -0.03)).mean()
    assert covered >= 0.95 - slack(0.95, rows)
    assert (found.tost_p <= 0.05).mean() <= 0.05 + slack(0.05, rows)


def _estimates(name, rho, rng, codes):
    """The truth, and an interval, of each estimate on one draw of prompts."""
    n = len(codes)
    x, w = normals(rng, 2, codes, rho)
    u = uniforms(rng, 2, codes, rho)
    if name == "mean":
        yield 0.0, stats.mean_estimate(x, clusters=codes)
    elif name == "skewed mean":
        yield np.exp(0.125), stats.mean_estimate(np.exp(0.5 * x), clusters=codes)
    elif name == "share":
        for rate in (0.02, 0.3, 0.5):
            yield rate, stats.share_estimate(u[0] < rate, clusters=codes)
    elif name == "probability":
        yield norm.cdf(1 / np.sqrt(2)), stats.share_estimate(norm.cdf(1 + x), clusters=codes)
    elif name == "paired probability":
        found = stats.paired_shift(norm.cdf(x), norm.cdf(x + 0.3 * w), clusters=codes, most=1)
        yield 0.0, found
    elif name == "auroc":
        truth = norm.cdf(1.5 / np.sqrt(2))
        yield truth, stats.auroc_estimate(1.5 + x, w, clusters=(codes, codes + n))
        # twins on the other side, as like as the prompts of a cluster are
        shared = np.sqrt(rho) * normals(rng, 1, codes, 1.0)[0]
        a, b = (shared + np.sqrt(1 - rho) * rng.standard_normal(n) for _ in range(2))
        yield truth, stats.auroc_estimate(1.5 + a, b, clusters=(codes, codes))
    elif name == "dprime":
        yield 1.5, stats.dprime_estimate(1.5 + x, w, clusters=(codes, codes + n))
    elif name == "kappa":
        # one judge errs on a fifth of what the other says, whole clusters together or not
        first = u[0] < 0.5
        second = np.where(u[1] < 0.2, ~first, first)
        labels = [np.where(side, "a", "b").tolist() for side in (first, second)]
        yield 0.6, stats.kappa_estimate(*labels, clusters=codes)
    elif name == "excess":
        draws = rng.normal(0, 0.5, (9, 1)) + normals(rng, 9, codes, rho) + x
        yield 0.0, excess_over_random(draws[0], draws[1:], codes)[0]
    elif name == "corrected":
        hits, right = rng.binomial(200, 0.9), rng.binomial(200, 0.95)
        error = ErrorRates(Rate.of(hits, 200), Rate.of(right, 200), 0)
        refused = np.where(u[0] < 0.6, rng.random(n) < 0.9, rng.random(n) < 0.05)
        yield 0.6, corrected_rate(refused, error, clusters=codes).corrected
    elif name == "ece shift":
        p = norm.cdf(1 + w)
        y = (u[0] < p).astype(float)
        yield 0.0, ece_shift((p, y), (p, (u[1] < p).astype(float)), clusters=codes)


ESTIMATES = ("mean", "skewed mean", "share", "probability", "paired probability", "auroc",
             "dprime", "kappa", "excess", "corrected", "ece shift")  # fmt: skip


@pytest.mark.verify
@pytest.mark.parametrize("layout_of", LAYOUTS)
@pytest.mark.parametrize("name", ESTIMATES)
def test_every_interval_covers(name, layout_of):
    codes, rounds = layout(layout_of), 400
    for rho in RHO:
        rng = np.random.default_rng(8)
        hits = []
        for _ in range(rounds):
            hits += [[e.low <= truth <= e.high] for truth, e in _estimates(name, rho, rng, codes)]
        covered = np.mean(hits)
        assert covered >= 0.95 - slack(0.95, rounds), (rho, covered)


@pytest.mark.verify
@pytest.mark.parametrize("name", LAYOUTS)
def test_calibrated_models_are_seldom_called_miscalibrated(name):
    codes, rounds = layout(name), 400
    for rho in RHO:
        rng = np.random.default_rng(9)
        wrong = 0
        for _ in range(rounds):
            p = norm.cdf(1 + normals(rng, 1, codes, rho)[0])
            y = (uniforms(rng, 1, codes, rho)[0] < p).astype(float)
            wrong += reliability(p, y, clusters=codes, resamples=400).p_calibrated <= 0.05
        assert wrong / rounds <= 0.05 + slack(0.05, rounds), (rho, wrong / rounds)
