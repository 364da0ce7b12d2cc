"""Simulated matrices of which the truth is known: error rates, coverage and power."""

import numpy as np
import pandas as pd
import pytest
from outcomes import matrix_of, outcomes_of
from scipy.stats import binom

from mechprobe.analysis.deltas import pair
from mechprobe.analysis.document import analyse
from mechprobe.analysis.effects import effects
from mechprobe.analysis.paired import detectable_fall

pytestmark = pytest.mark.verify
MATRICES = 250
ROWS = 20


def null_matrix(rng, *, n, cluster=1, score=False):
    """Cells that answer as their baseline does: each prompt has one chance, whoever answers.

    The prompts of a cluster are answered alike, all of them.
    """
    chance = rng.beta(6, 1, n // cluster)
    drawn = rng.random((ROWS + 1, n // cluster)) < chance
    if score:
        drawn = np.clip(chance + 0.2 * rng.standard_normal(drawn.shape), 0, 1)
    values = np.repeat(drawn.astype(float), cluster, axis=1)
    cells = {"FP16@t": values[0]} | {f"q{i}@t": values[i] for i in range(1, ROWS + 1)}
    return outcomes_of(cells, clusters=np.arange(n) // cluster)


def at_most(share, level, trials):
    """Whether so many are what chance allows at this level, three errors up.

    The rows of a matrix share a baseline: only its matrices are independent trials.
    """
    return share <= level + 3 * np.sqrt(level * (1 - level) / trials)


@pytest.mark.parametrize(("n", "cluster"), [(200, 1), (220, 1), (200, 4)])
def test_without_an_effect_the_error_rates_hold(n, cluster):
    rng = np.random.default_rng(n + cluster)
    any_wrong, wrong, missed = 0, 0, 0
    for seed in range(MATRICES):
        found = effects(pair(null_matrix(rng, n=n, cluster=cluster), resamples=400, seed=seed))
        any_wrong += bool((found["p_holm"] <= 0.05).any())
        wrong += int((found["p"] <= 0.05).sum())
        missed += int(((found["low"] > 0) | (found["high"] < 0)).sum())
    assert at_most(any_wrong / MATRICES, 0.05, MATRICES)
    assert at_most(wrong / (MATRICES * ROWS), 0.05, MATRICES)
    # a bootstrap of 50 clusters misses a little more than its 5 %
    assert at_most(missed / (MATRICES * ROWS), 0.05 if cluster == 1 else 0.06, MATRICES)


def test_intervals_of_scores_cover():
    rng = np.random.default_rng(0)
    missed = 0
    for seed in range(MATRICES):
        found = effects(pair(null_matrix(rng, n=100, score=True), resamples=400, seed=seed))
        missed += int(((found["low"] > 0) | (found["high"] < 0)).sum())
    assert at_most(missed / (MATRICES * ROWS), 0.05, MATRICES * ROWS)
    assert missed / (MATRICES * ROWS) > 0.02  # nor far wider than they need be


def stepped(rng, model, n, loss, gain):
    """A cell that loses and gains prompts with these chances, beside its own baseline."""
    kind = rng.choice(3, size=n, p=[loss, gain, 1 - loss - gain])
    values = {"FP16@t": np.where(kind == 1, 0.0, 1.0), "q@t": np.where(kind == 0, 0.0, 1.0)}
    return outcomes_of(values, model=model)


@pytest.mark.parametrize("churn", [0.0, 0.08])
def test_equivalence_is_seldom_claimed_of_three_points(churn):
    # truth at the margin: a claim of equivalence is an error, at most 5 % of the time
    rng = np.random.default_rng(1)
    matrices, claims = 100, 0
    for seed in range(matrices):
        frames = [stepped(rng, f"m{i}", 400, 0.03 + churn / 2, churn / 2) for i in range(ROWS)]
        found = effects(pair(pd.concat(frames, ignore_index=True), resamples=100, seed=seed))
        claims += int((found["tost_p"] <= 0.05).sum())
    assert at_most(claims / (matrices * ROWS), 0.05, matrices * ROWS)


@pytest.mark.parametrize(("n", "churn"), [(220, 0), (220, 12), (100, 4)])
def test_a_planted_fall_of_the_detectable_size_is_found_at_the_stated_power(n, churn):
    rng = np.random.default_rng(churn)
    fall = float(detectable_fall([n], [churn])[0])
    loss, gain = churn / n / 2 + fall, churn / n / 2
    seen = 0
    matrices = 100
    for seed in range(matrices):
        frames = [stepped(rng, f"m{i}", n, loss, gain) for i in range(ROWS)]
        found = effects(pair(pd.concat(frames, ignore_index=True), resamples=100, seed=seed))
        seen += int(((found["p"] <= 0.05) & (found["mean"] < 0)).sum())
    assert seen / (matrices * ROWS) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("fall", [0.06, 0.12, 0.2])
def test_planted_hidden_danger_is_named_as_often_as_it_must_be(fall):
    """Every harmful prompt is refused before; a cell loses each with the same chance."""
    rng = np.random.default_rng(int(100 * fall))
    n, named, matrices = 220, 0, 60
    frequency = []
    for seed in range(matrices):
        answers = {"FP16@t": np.ones(n)}
        quality = {"FP16@t": np.ones(100)}
        for i in range(ROWS):
            answers[f"q{i}@t"] = (rng.random(n) >= fall).astype(float)
            quality[f"q{i}@t"] = np.ones(100)
        frame = pd.concat(
            [outcomes_of(answers), outcomes_of(quality, measure="accuracy")], ignore_index=True
        )
        found = analyse(frame, matrix_of(frame), quality="accuracy", resamples=200, seed=seed)
        rows = [one for one in found["rows"] if one["baseline"]]
        named += sum(one["regime"] == "hidden_danger" for one in rows)
        frequency += [one["regime_frequency"].get("hidden_danger", 0.0) for one in rows]
    expected = float(binom.sf(22, n, fall))
    error = np.sqrt(max(expected * (1 - expected), 1e-3) / (matrices * ROWS))
    assert named / (matrices * ROWS) == pytest.approx(expected, abs=4 * error)
    # what the bootstrap says of single rows spreads, but its mean follows the truth
    assert np.mean(frequency) == pytest.approx(expected, abs=0.12)
