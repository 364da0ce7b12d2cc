"""The race of candidates against the rule on every score of every prompt."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mechprobe.probes.candidate_passes import kl, kl_floor
from mechprobe.probes.elimination import SLACK, Candidate, PartialMean, race
from mechprobe.probes.refusal_tokens import EPSILON, refusal_log_odds
from mechprobe.probes.selection import NoCandidateError, select_direction

LAYERS = 10
LOW = math.log(EPSILON / (1 + EPSILON))
COLUMNS = ["position", "layer", "bypass", "induce", "kl"]


def draw(seed, positions, n, spread):
    """Scores of every prompt of every candidate, their means mixed so that filters take some."""
    rng = np.random.default_rng(seed)
    found = {}
    for position in range(-positions, 0):
        for layer in range(8):
            means = rng.normal((2, 1, 0.05), (4, 4, 0.1))
            values = means[:, None] + np.array([[1], [1], [0.02]]) * spread * rng.normal(
                size=(3, n)
            )
            bypass, induce = np.clip(values[:2], LOW, -LOW)
            found[position, layer] = bypass, induce, np.maximum(values[2], -0.01)
    return found


def whole(scores):
    rows = [(*place, *(each.mean() for each in values)) for place, values in scores.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def raced(scores, n, layers=LAYERS):
    """The table of a race over the same scores, and the passes that it took.

    A pass is one prompt through all blocks.
    """
    candidates = [
        Candidate(
            position,
            layer,
            {
                "kl": PartialMean(np.full(n, -0.01), 0.0),
                "induce": PartialMean(np.full(n, LOW), 3.0, 1 - layer / layers),
                "bypass": PartialMean(np.full(n, LOW), 3.0),
            },
        )
        for position, layer in scores
    ]
    passes = []

    def run(candidate, score, rows):
        passes.append((candidate, score, rows))
        bypass, induce, kl = scores[candidate.position, candidate.layer]
        return {"kl": kl, "induce": -induce, "bypass": bypass}[score][rows]

    race(candidates, run)
    met = [(id(c), score, row) for c, score, rows in passes for row in rows.tolist()]
    assert len(set(met)) == len(met)  # no prompt meets a candidate twice
    cost = sum(len(rows) * c.scores[score].share for c, score, rows in passes)
    return pd.DataFrame([each.row for each in candidates], columns=[*COLUMNS, "out"]), cost


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1, 2, 7, 9, 32]),
    st.sampled_from([0.0, 0.5, 3.0, 20.0]),
)  # fmt: skip
def test_the_winner_and_its_scores_are_those_of_all_prompts(seed, positions, n, spread):
    scores = draw(seed, positions, n, spread)
    table, _ = raced(scores, n)
    try:
        want = select_direction(whole(scores), LAYERS)
    except NoCandidateError:
        with pytest.raises(NoCandidateError):
            select_direction(table, LAYERS)
        return
    found = select_direction(table, LAYERS)
    assert (found.position, found.layer) == (want.position, want.layer)
    for name in ("bypass", "induce", "kl"):
        assert getattr(found, name) == pytest.approx(getattr(want, name), abs=1e-12)


def test_what_took_a_candidate_out_is_so_on_all_prompts():
    scores = draw(0, 3, 32, 0.5)
    table, passes = raced(scores, 32)
    full = whole(scores)
    best = select_direction(full, LAYERS).bypass
    for out, row in zip(table["out"], full.itertuples(), strict=True):
        assert {"kl": row.kl > 0.1, "induce": row.induce < 0, "bypass": row.bypass > best}.get(
            out, True
        )
    assert set(table["out"]) == {"", "kl", "induce", "bypass"}
    assert passes < 0.6 * 3 * 32 * len(scores)


def test_equal_scores_go_to_the_earlier_place():
    same = np.full(9, -1.0), np.full(9, 2.0), np.zeros(9)
    table, _ = raced({(-2, 3): same, (-1, 1): same, (-1, 2): same}, 9)
    found = select_direction(table, LAYERS)
    assert (found.position, found.layer) == (-2, 3)


def test_the_bounds_hold_for_any_logits():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 50)) * rng.choice([0.1, 3, 30, 300], (200, 1))
    other = rng.normal(size=(200, 50)) * rng.choice([0.1, 3, 30, 300], (200, 1))
    floor = kl_floor(base) - 1e-12
    assert (kl(base, other) >= floor).all()
    assert (kl(base, base) >= floor).all()
    p = softmax(base, axis=-1)
    near = np.log(np.maximum(p * (1 + 50e-6) - 1e-6, 1e-12))  # what Gibbs' inequality is tight at
    assert (kl(base, near) >= floor).all()
    assert (kl(base, near) - floor).min() < 1e-6
    for ids in ([0], [1, 2], list(range(50))):
        odds = refusal_log_odds(base, ids)
        assert odds.min() >= LOW - SLACK and odds.max() <= -LOW + SLACK


def spread(mean, low, high, deviation, rng, n=32):
    """Values of `n` prompts between two bounds, with this mean."""
    mean = min(max(mean, low), high)  # published in float32
    noise = rng.uniform(-1, 1, n)
    noise -= noise.mean()
    return mean + min(deviation, (mean - low) / 2, (high - mean) / 2) * noise


@pytest.mark.verify
@pytest.mark.parametrize("deviation", [0.0, 2.0, 6.0])
def test_the_published_tables_give_the_published_choice_at_a_quarter(reference_files, deviation):
    """Means of each candidate as Arditi et al. published them, spread over prompts."""
    runs = sorted(reference_files.glob("refusal_direction/pipeline/runs/*"))
    if not runs:
        pytest.skip("no pipeline/runs of andyrdt/refusal_direction (CONTRIBUTING.md)")
    for run in runs:
        rows = json.loads((run / "select_direction/direction_evaluations.json").read_text())
        layers = 1 + max(row["layer"] for row in rows)
        rng = np.random.default_rng(0)
        scores = {
            (row["position"], row["layer"]): (
                spread(row["refusal_score"], LOW, -LOW, deviation, rng),
                spread(row["steering_score"], LOW, -LOW, deviation, rng),
                spread(row["kl_div_score"], 0, 30, min(deviation, 0.5) * row["kl_div_score"], rng),
            )
            for row in rows
        }
        kept = {place: each for place, each in scores.items() if place[1] < int(0.8 * layers)}
        table, passes = raced(kept, 32, layers)
        found = select_direction(table, layers)
        chosen = json.loads((run / "direction_metadata.json").read_text())
        assert (found.position, found.layer) == (chosen["pos"], chosen["layer"])
        want = select_direction(whole(scores), layers)
        assert found.bypass == pytest.approx(want.bypass, abs=1e-9)
        assert passes < 0.25 * 3 * 32 * len(scores)
        print(run.name, passes / (3 * 32 * len(scores)))
