"""Matching and its permutation p: against enumeration, scipy, and simulated error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kstest, ttest_1samp

from mechprobe.probes.matching import (
    MatchedSets,
    adjusted_ratio,
    draw_controls,
    match,
    without_scale,
)
from mechprobe.probes.neuron_errors import Profile, log_rms
from mechprobe.probes.neuron_ratios import error_ratios, scale_matched, study_ratio

CUTOFF = 0.05
MASSIVE = 3


LAWS = {
    "line": lambda scale: scale,
    "kink": lambda scale: np.where(scale < 1, scale, scale**4),
    "ceiling": lambda scale: np.minimum(scale, 2),
}


def simulate(rng, kind="residual", *, width=768, layers=3, planted=1.0, law="line"):
    """Error that depends on scale alone (times `planted` at the safety dimensions).

    Activations are normal with a mean; the contrast is a shift of some share of the scale, so that
    the largest dimensions have the largest contrast. A dimension's error has, apart from its scale,
    a factor of its own: in the stream the same at every layer. Three dimensions are massive.
    """
    shape = (width, layers)
    whole = (width, 1) if kind == "residual" else shape
    scale = np.exp(rng.normal(0, 0.4, whole) + rng.normal(0, 0.1, shape))
    scale[:MASSIVE] = [[1e2], [1e4], [1e6]]
    shift = rng.normal(0, 0.3, whole) * np.abs(rng.normal(1, 0.3, shape))
    mean = rng.normal(0, 1, shape) + shift
    true = scale * np.sqrt(mean**2 + 1)
    noise = rng.normal(0, np.sqrt(2 / 128), shape)
    contrast = scale * np.abs(shift + noise)
    held = scale * (mean + rng.normal(size=(82, *shape)))
    own = np.exp(rng.normal(0, 0.2, whole))
    error = 0.05 * LAWS[law](true) * own * np.abs(rng.normal(size=(50, *shape))).mean(axis=0)
    profiles = []
    for layer in range(layers):
        each = Profile(
            point=f"blocks.{layer}",
            kind=kind,
            layer=layer,
            contrast=contrast[:, layer],
            error=error[:, layer],
            rms=true[:, layer],
            scale=log_rms(held[::2, :, layer]),
            scale_again=log_rms(held[1::2, :, layer]),
            gain=np.ones(width),
        )
        each.error[each.safety(CUTOFF)] *= planted
        profiles.append(each)
    return profiles


def published(profiles, skip):
    """The study-mode ratio, over layers, of all dimensions but the first ones."""
    contrasts, errors = (
        [getattr(p, name)[skip:] for p in profiles] for name in ("contrast", "error")
    )
    return study_ratio(contrasts, errors, range(len(profiles)), n_error=50, n_fit=128).mean


def check_null(runs, seed, kind, law="line"):
    rng = np.random.default_rng(seed)
    p, covered, log_ratio, unadjusted, without_massive = [], [], [], [], []
    refused = 0
    while len(p) < runs:
        profiles = simulate(rng, kind, law=law)
        found = scale_matched(profiles, CUTOFF, draws=499, seed=len(p))
        if found is None:
            refused += 1
            continue
        p.append(found.p)
        covered.append(found.low <= 1 <= found.high)
        log_ratio.append(np.log(found.ratio))
        unadjusted.append(published(profiles, 0))
        without_massive.append(published(profiles, MASSIVE))
        for profile in profiles:
            lost = profile.matched(CUTOFF).unmatched
            assert {d for d in range(MASSIVE) if profile.safety(CUTOFF)[d]} <= set(lost)
    assert refused < 0.05 * runs
    assert np.quantile(unadjusted, 0.01) > (1.1 if law == "ceiling" else 10)
    assert np.quantile(without_massive, 0.01) > (1.1 if law == "ceiling" else 1.3)
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)
    assert abs(np.mean(log_ratio)) < 0.01


def test_error_that_depends_on_scale_alone_is_nobodys_excess():
    check_null(200, 20, "residual")


@pytest.mark.verify
@pytest.mark.parametrize("kind", ["residual", "mlp"])
@pytest.mark.parametrize("law", list(LAWS))
def test_the_p_is_uniform_over_many_simulations(kind, law):
    check_null(2000 if law == "line" else 1000, 30, kind, law)


def bent(rng, n, noise=0.0):
    """Members of matched sets whose log error is no line over log scale; three layers."""
    true = rng.uniform(-1, 1, n)
    error = np.stack([true, np.where(true < 0, true, 4 * true), np.minimum(true, 0)], axis=1)
    first, again = (np.stack([true + rng.normal(0, noise, n)] * 3, axis=1) for _ in range(2))
    controls = rng.permutation(np.arange(n // 5, n)).reshape(n // 5, 4)
    sets = MatchedSets(np.arange(n // 5), controls, np.array([], np.int64))
    return error, first, again, sets


def test_a_bent_law_leaves_little_to_explain():
    error, first, again, sets = bent(np.random.default_rng(6), 300)
    left = without_scale(error, again, first, sets)
    np.testing.assert_allclose(left[:, 0], left[0, 0], atol=1e-9)  # a line is taken off whole
    one = error - error.mean(axis=0)
    x = first[:, 0] - first[:, 0].mean()
    straight = one - np.outer(x, x @ one / (x @ x))
    for layer in (1, 2):  # one bend at 0, where the knots are thirds
        assert np.std(left[:, layer]) < 0.4 * np.std(straight[:, layer])


def test_noise_in_neither_scale_flattens_the_line():
    slopes = []
    for seed in range(20):
        error, first, again, sets = bent(np.random.default_rng(seed), 300, noise=0.3)
        taken = error[:, 0] - without_scale(error, again, first, sets)[:, 0]
        slopes.append(np.polyfit(again[:, 0], taken, 1)[0])
    assert np.mean(slopes) == pytest.approx(1, abs=0.03)  # least squares would say 0.79


def test_few_members_bend_nothing():
    error, first, again, sets = bent(np.random.default_rng(7), 50)
    left = without_scale(error, again, first, sets)
    for layer in range(3):
        slope, _ = np.polyfit(first[:, layer], error[:, layer], 1)
        expected = error[:, layer] - slope * (first[:, layer] - first[:, layer].mean())
        np.testing.assert_allclose(left[:, layer], expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_planted_extra_error_is_found(kind):
    rng = np.random.default_rng(11)
    runs = [scale_matched(simulate(rng, kind, planted=1.3), CUTOFF, draws=499) for _ in range(20)]
    assert max(found.p for found in runs) < 0.05
    assert np.mean([np.log(found.ratio) for found in runs]) == pytest.approx(np.log(1.3), abs=0.05)
    assert np.mean([found.low <= 1.3 <= found.high for found in runs]) >= 0.8


def test_protection_is_found_too():
    """AWQ scales salient channels up before rounding: less error than others is an answer."""
    found = scale_matched(simulate(np.random.default_rng(4), planted=0.7), CUTOFF)
    assert found.high < 1
    assert found.p < 0.01


def test_massive_safety_dimensions_without_an_other_are_counted_and_too_many_stop_it():
    profiles = simulate(np.random.default_rng(0), width=200, layers=1)
    contrast = np.where(np.arange(200) < MASSIVE, 1e6, profiles[0].contrast)
    massive = [Profile(**{**fields(profiles[0]), "contrast": contrast})]
    one, five = (error_ratios(massive, cutoff)[0] for cutoff in (0.01, 0.05))
    assert (one.n_safety, one.n_unmatched, one.adjusted) == (2, 2, None)
    assert five.ratio > 10
    assert five.n_safety == 10
    assert five.n_unmatched >= MASSIVE
    assert five.adjusted is None


def fields(profile):
    return {name: getattr(profile, name) for name in profile.__dataclass_fields__}


def test_matches_are_within_the_caliper_and_used_once():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scale = rng.normal(0, 1, 300)
        scale[5] = -np.inf
        safety = rng.random(300) < 0.1 * (1 + (scale > 0.5))
        safety[5] = True
        sets = match(scale, safety, caliper=0.1, controls=4)
        used = sets.controls[sets.controls >= 0]
        assert len(np.unique(used)) == len(used)
        assert not safety[used].any()
        assert 5 in sets.unmatched
        assert set(sets.safety) | set(sets.unmatched) == set(np.flatnonzero(safety))
        for one, controls in zip(sets.safety, sets.controls, strict=True):
            there = controls[controls >= 0]
            assert len(there) >= 1
            assert np.abs(scale[there] - scale[one]).max() <= 0.1
        free = np.setdiff1d(np.flatnonzero(~safety), used)
        for one in sets.unmatched[sets.unmatched != 5]:
            assert np.abs(scale[free] - scale[one]).min() > 0.1
        drawn = draw_controls(sets, 7)
        assert drawn.shape == (7, len(sets.safety))
        assert all(
            d in controls for row in drawn for d, controls in zip(row, sets.controls, strict=True)
        )


def test_the_p_is_that_of_all_relabellings():
    """Every way to name one member of each set, written out."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(20, 1))
    values[:4] += 0.9
    controls = np.array([[4, 5, -1], [6, 7, 8], [9, -1, -1], [10, 11, 12]])
    sets = MatchedSets(np.arange(4), controls, np.array([], dtype=np.int64))
    weights = np.zeros((20, 1))
    weights[:4] = 1
    found = adjusted_ratio(values, weights, sets, draws=40_000)
    members = [[s, *(c for c in row if c >= 0)] for s, row in zip(range(4), controls, strict=True)]

    def statistic(chosen):
        return np.mean([
            values[c, 0] - np.mean([values[o, 0] for o in row if o != c])
            for c, row in zip(chosen, members, strict=True)
        ])  # fmt: skip

    observed = statistic(range(4))
    every = np.array([statistic(chosen) for chosen in itertools.product(*members)])
    assert len(every) == 3 * 4 * 2 * 4
    assert every.mean() == pytest.approx(0, abs=1e-12)
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-12)
    assert found.ratio == pytest.approx(np.exp(observed))
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))


def test_the_interval_is_the_t_interval_over_sets():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(60, 1))
    sets = MatchedSets(np.arange(20), np.arange(20, 60).reshape(20, 2), np.array([], np.int64))
    weights = (np.arange(60) < 20).astype(float)[:, None]
    found = adjusted_ratio(values, weights, sets, draws=9)
    excess = values[:20, 0] - values[20:, 0].reshape(20, 2).mean(axis=1)
    expected = ttest_1samp(excess, 0).confidence_interval()
    np.testing.assert_allclose(np.log([found.low, found.high]), expected)
