"""Principal angles against planted subspaces and scikit-learn's SVD; noise floors."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD

from mechprobe import stats
from mechprobe.probes.subspaces import principal_angles, refusal_subspace, split_half_angles


def test_the_subspace_is_that_of_scikit_learns_svd():
    rows = np.random.default_rng(0).normal(size=(40, 12)) * np.linspace(3, 0.1, 12) + 1.0
    found = refusal_subspace(rows, 3)
    expected = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(rows).components_
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1.0, atol=1e-9)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)


def test_angles_are_those_that_were_planted():
    turns = np.radians([0.0, 20.0, 75.0])
    a = np.eye(8)[:3]
    b = np.array([np.cos(t) * np.eye(8)[k] + np.sin(t) * np.eye(8)[k + 3]
                  for k, t in enumerate(turns)])  # fmt: skip
    mix = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    assert principal_angles(a, mix @ b) == pytest.approx((0.0, 20.0, 75.0), abs=1e-5)
    # the definition: cosines are the singular values of the product of the bases
    values = np.degrees(np.arccos(np.clip(np.linalg.svd(a @ b.T)[1], -1, 1)))
    assert principal_angles(a, b) == pytest.approx(tuple(np.sort(values)), abs=1e-5)


def test_too_few_pairs_span_no_subspace():
    rows = np.random.default_rng(0).normal(size=(3, 10))
    assert refusal_subspace(rows, 4) is None
    assert refusal_subspace(np.repeat(rows[:1], 6, axis=0), 2) is None
    assert split_half_angles(rows, 2) is None


def test_the_floor_is_small_for_what_is_there_and_large_for_noise():
    rng = np.random.default_rng(3)
    strong = rng.normal(size=(200, 1)) * np.eye(64)[0] * 20 + np.eye(64)[1] * 30
    rows = strong + rng.normal(size=(200, 64))
    floor = split_half_angles(rows, 4)
    # first-order perturbation: noise of 62 dimensions over a strength of 20, in each of two halves
    expected = np.degrees(np.sqrt(2 * 62 / 100) / 20)
    assert floor[1] == pytest.approx(expected, rel=0.1)  # the weaker of the planted dimensions
    assert floor[3] > 45.0  # beyond them, halves share nothing


def test_halves_that_part_twins_err_in_opposite_ways():
    """An untrained model: what twins share is large, what the label adds is nothing."""
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(128, 64))
    a, b = (topic + 0.02 * rng.normal(size=topic.shape) for _ in range(2))
    twins = [(k, k) for k in range(128)]
    assert stats.split_half_cosine(a, b) < -0.95
    assert abs(stats.split_half_cosine(a, b, twins=twins)) < 0.2
    # a real difference is found both ways, and rows without a twin may be among them
    assert stats.split_half_cosine(a + 1.0, b, twins=twins[:100]) > 0.9
    assert stats.split_half_cosine(a + 1.0, b[:120], twins=twins[:100]) > 0.9


def test_twins_stay_together_whatever_their_order():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 60, 16))
    order = rng.permutation(60)
    expected = stats.split_half_cosine(a, b, twins=[(k, k) for k in range(60)], rounds=400)
    found = stats.split_half_cosine(
        a, b[order], twins=[(int(k), j) for j, k in enumerate(order)], rounds=400
    )
    assert found == pytest.approx(expected, abs=0.03)


def test_equal_activations_have_no_floor():
    same = np.ones((8, 4))
    assert stats.split_half_cosine(same, same) is None


def test_dprime_has_an_interval_that_covers():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        found = stats.dprime_estimate(rng.normal(1.5, 1, 80), rng.normal(0, 1, 80))
        covered += found.low <= 1.5 <= found.high
    assert covered >= 51  # 95 % of 60 is 57; below 51 has probability 0.002
    assert stats.dprime_estimate([1.0], [0.0, 1.0]) is None
