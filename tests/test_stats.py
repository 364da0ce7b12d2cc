"""Statistics against closed forms and other libraries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_rel
from sklearn.metrics import roc_auc_score

from mechprobe import stats


def test_wilson_reproduces_the_published_bound():
    # REFERENCE: 10 of 10 has a Wilson 95 % lower bound of 0.7225
    low, high = stats.wilson(10, 10)
    assert low == pytest.approx(0.7225, abs=5e-5)
    assert high == pytest.approx(1.0, abs=1e-12)
    assert stats.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_closed_form(count, extra):
    n = count + extra
    z = norm.ppf(0.975)
    p = count / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert stats.wilson(count, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    st.lists(st.integers(-5, 5), min_size=1, max_size=30),
)
def test_auroc_equals_sklearn_with_ties(positive, negative):
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, positive + negative)
    assert stats.auroc(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_auroc_and_dprime_say_when_they_cannot():
    assert stats.auroc([], [1.0]) is None
    assert stats.dprime([1.0], [0.0, 1.0]) is None
    assert stats.dprime([1.0, 1.0], [0.0, 0.0]) is None


def test_dprime_of_two_unit_normals_is_their_distance():
    rng = np.random.default_rng(0)
    value = stats.dprime(rng.normal(2, 1, 200_000), rng.normal(0, 1, 200_000))
    assert value == pytest.approx(2.0, abs=0.02)


def test_kl_equals_torch_in_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 50))
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.from_numpy(b), -1),
        torch.log_softmax(torch.from_numpy(a), -1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    np.testing.assert_allclose(stats.kl_divergence(a, b), expected.numpy(), atol=1e-12)


def test_kl_survives_excluded_tokens():
    a = np.array([[0.0, -np.inf, 0.0]])
    assert stats.kl_divergence(a, a)[0] == 0.0
    assert stats.kl_divergence(np.zeros((1, 3)), a)[0] == np.inf


def test_split_half_is_one_without_noise_and_near_zero_without_signal():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=64)
    clean = stats.split_half_cosine(np.tile(direction, (10, 1)), np.zeros((10, 64)))
    assert clean == pytest.approx(1.0, abs=1e-12)
    noise = stats.split_half_cosine(rng.normal(size=(64, 512)), rng.normal(size=(64, 512)))
    assert noise is not None
    assert abs(noise) < 0.15
    assert stats.split_half_cosine(np.zeros((3, 4)), np.zeros((9, 4))) is None


def test_mean_estimate_agrees_with_student_on_normal_data():
    x = np.random.default_rng(3).normal(size=400)
    found = stats.mean_estimate(x)
    half = norm.ppf(0.975) * x.std(ddof=1) / np.sqrt(len(x))
    assert found.value == pytest.approx(x.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.02)
    assert found.n == 400


def test_mean_estimate_covers_what_it_says_and_clusters_widen_it():
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(20), 5)
    hit = {"own": 0, "clustered": 0}
    for trial in range(150):
        x = rng.normal(size=20)[names] + 0.2 * rng.normal(size=100)  # true mean 0
        for kind, clusters in (("own", None), ("clustered", names)):
            e = stats.mean_estimate(x, clusters=clusters, resamples=500, seed=trial)
            hit[kind] += e.low <= 0 <= e.high
    assert hit["clustered"] / 150 > 0.87
    assert hit["own"] / 150 < 0.75  # five prompts that go together are not five prompts


def test_what_data_cannot_support_is_no_estimate():
    assert stats.mean_estimate([]) is None
    assert stats.mean_estimate([1.0]) is None
    assert stats.mean_estimate([1.0, 2.0], clusters=["a", "a"]) is None
    assert stats.mean_estimate([1.0, np.inf]) is None
    assert stats.auroc_estimate([1.0], [0.0, 0.5]) is None
    assert stats.mean_estimate([0.1 + 0.2, 0.3, 0.3]) is None  # alike but for rounding
    assert stats.paired_shift([1.5, 2.5, 4.5], [1.0, 2.0, 4.0]) is None
    same = stats.mean_estimate([0.0, 0.0, 0.0])
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_paired_shift_is_the_mean_difference_and_cohens_dz():
    rng = np.random.default_rng(1)
    base = rng.normal(size=80)
    cell = base + 0.5 + 0.25 * rng.normal(size=80)
    found = stats.paired_shift(cell, base)
    d = cell - base
    t, _ = ttest_rel(cell, base)
    assert found.value == pytest.approx(d.mean(), abs=1e-12)
    assert found.effect == pytest.approx(t / np.sqrt(80), rel=1e-12)
    assert found.low < 0.5 < found.high
    assert found.baseline == pytest.approx(base.mean(), abs=1e-12)


def test_auroc_estimate_covers_the_closed_form():
    rng = np.random.default_rng(2)
    truth, hits = norm.cdf(1 / np.sqrt(2)), 0  # of N(1, 1) against N(0, 1)
    for _ in range(100):
        e = stats.auroc_estimate(rng.normal(1, 1, 60), rng.normal(size=60))
        hits += e.low <= truth <= e.high
    assert hits >= 88
    apart = stats.auroc_estimate([3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 2.5])
    assert (apart.value, apart.high) == (1.0, 1.0)
    assert apart.low == pytest.approx(stats.wilson(3, 3)[0])
