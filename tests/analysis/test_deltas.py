import numpy as np
import pandas as pd
import pytest
from outcomes import answered, outcomes_of, simulated
from statsmodels.stats.contingency_tables import mcnemar

from mechprobe.analysis.deltas import pair
from mechprobe.analysis.effects import effects
from mechprobe.analysis.paired import detectable_fall
from mechprobe.errors import TableError
from mechprobe.stats import paired_shift

NAN = float("nan")


def test_prompts_are_paired_by_id_and_not_by_place():
    frame = outcomes_of({"FP16@t": [1, 1, 0, 1], "Q2@t": [0, 1, 1, 1]})
    expected = pair(frame).table
    shuffled = pair(frame.sample(frac=1, random_state=0)).table
    row = expected.iloc[0]
    assert (row.n, row.lost, row.gained, row.before_sum, row.after_sum) == (4, 1, 1, 3, 3)
    same = ["n", "lost", "gained", "before_sum", "after_sum"]
    assert (shuffled[same] == expected[same]).all(axis=None)


def test_what_could_not_be_read_is_in_no_count():
    frame = outcomes_of({"FP16@t": [1, NAN, 1, 1], "Q2@t": [0, 1, NAN, 1]})
    row = pair(frame).table.iloc[0]
    assert (row.n, row.unread, row.lost, row.before_sum) == (2, 2, 1, 2)


def test_prompts_that_one_side_was_not_asked_are_not_compared():
    frame = outcomes_of({"FP16@t": [1, 1, 1], "Q2@t": [0, 0, 0]})
    frame = frame[~((frame.cell == "FP16@t") & (frame.prompt == "p0001"))]
    row = pair(frame).table.iloc[0]
    assert (row.n, row.unread, row.lost) == (2, 0, 2)


def test_models_measures_and_instruments_stay_apart():
    parts = [
        outcomes_of({"a@t": [1, 1], "b@t": [0, 0]}, model="one"),
        outcomes_of({"a@t": [1, 1], "b@t": [1, 0]}, model="two"),
        outcomes_of({"a@t": [1, 1], "b@t": [1, 1]}, model="one", instrument="soft"),
        outcomes_of({"a@t": [0, 0], "b@t": [1, 1]}, model="one", measure="accuracy"),
    ]
    table = pair(pd.concat(parts, ignore_index=True)).table
    found = table.set_index(["model", "measure", "instrument"])[["lost", "gained"]].T.to_dict(
        "list"
    )
    assert found == {
        ("one", "refusal", "hard"): [2, 0],
        ("two", "refusal", "hard"): [1, 0],
        ("one", "refusal", "soft"): [0, 0],
        ("one", "accuracy", "hard"): [0, 2],
    }


def test_a_cell_without_its_baseline_has_no_delta():
    frame = outcomes_of({"FP16@t": [1, 1], "Q2@t": [0, 0]})
    assert pair(frame[frame.cell == "Q2@t"]).table.empty
    assert pair(frame.iloc[:0]).table.empty


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="cluster"), "no column 'cluster'"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "prompt 'p0000' stands there twice"),
        (lambda f: f.assign(value=2.0), "m, FP16@t, refusal (hard): value 2.0"),
    ],
)
def test_wrong_outcomes_are_named(change, said):
    frame = outcomes_of({"FP16@t": [1, 1], "Q2@t": [0, 0]})
    with pytest.raises(TableError, match=said.replace("(", r"\(").replace(")", r"\)")):
        pair(change(frame))


def test_independent_answers_take_the_closed_forms():
    frame = outcomes_of({"FP16@t": answered(220, 200), "Q4@t": answered(220, 178)})
    row = effects(pair(frame)).iloc[0]
    assert row.p == pytest.approx(mcnemar([[178, 22], [0, 20]], exact=True).pvalue)
    assert row.low < -0.1 < row.high
    assert row.tost_p > 0.99
    assert row.margin == pytest.approx(2.9264 * np.sqrt(0.1 / 220), rel=1e-4)


def test_answers_that_change_together_are_one_piece_of_evidence():
    before, after = answered(80, 80), answered(80, 56)
    alone = outcomes_of({"FP16@t": before, "Q4@t": after})
    together = outcomes_of({"FP16@t": before, "Q4@t": after}, clusters=np.arange(80) // 8)
    one, ten = (effects(pair(frame, resamples=2000)).iloc[0] for frame in (alone, together))
    assert (one.clusters, ten.clusters) == (80, 10)
    assert ten.p == pytest.approx(2 * 0.5**3)  # three clusters of eight
    assert one.p < 1e-6
    assert ten.high - ten.low > 2 * (one.high - one.low)
    assert ten.mde > 2 * one.mde


@pytest.mark.parametrize("lost", [0, 1])
def test_clusters_that_hardly_change_see_no_smaller_fall_than_as_many_single_prompts(lost):
    before, after = answered(160, 160), answered(160, 160 - lost)
    frame = outcomes_of({"FP16@t": before, "Q8@t": after}, clusters=np.arange(160) // 2)
    row = effects(pair(frame)).iloc[0]
    assert row.mde == detectable_fall([80], [0])[0]
    # six clusters that fall are the fewest that the exact test sees
    assert row.mde > 6 / 80


def test_the_interval_of_scores_is_that_of_stats():
    rng = np.random.default_rng(0)
    before = rng.random(120)
    after = np.clip(before - 0.1 + 0.2 * rng.standard_normal(120), 0, 1)
    clusters = np.arange(120) // 3
    frame = outcomes_of({"FP16@t": before, "Q4@t": after}, measure="q", clusters=clusters)
    row = effects(pair(frame)).iloc[0]
    other = paired_shift(after, before, clusters=clusters, most=1)
    assert row.kind == "score"
    assert np.isnan(row.p)
    assert row["mean"] == pytest.approx(other.value)
    assert (row.low, row.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_scores_that_never_changed_have_an_interval_all_the_same():
    frame = outcomes_of({"FP16@t": [0.5] * 100, "Q8@t": [0.5] * 100}, measure="q")
    row = effects(pair(frame)).iloc[0]
    # Tango's interval without a change, in closed form: z² / (n + z²)
    assert (-row.low, row.high) == (pytest.approx(3.8414588 / 103.8414588),) * 2
    assert row.tost_p < 0.05


def test_one_cluster_allows_no_interval():
    frame = outcomes_of({"FP16@t": [1, 1], "Q2@t": [0, 1]}, clusters=["a", "a"])
    row = effects(pair(frame)).iloc[0]
    assert row.lost == 1
    assert np.isnan([row.low, row.high, row.tost_p, row.margin, row.mde]).all()


def test_resamples_belong_to_the_row_and_not_to_the_order_asked():
    frame = simulated(np.random.default_rng(0), 6, n=60, keep=0.8, churn=0.1)
    deltas = pair(frame, resamples=50, seed=3)
    ((_, change, size),) = deltas.resampled(np.arange(6))
    ((_, again, _),) = deltas.resampled(np.array([4, 1]))
    assert np.array_equal(again, change[:, [4, 1]])
    assert (size == 60).all()
    assert np.array_equal(change, np.rint(change))
    other = pair(frame, resamples=50, seed=4)
    assert not np.array_equal(next(iter(other.resampled(np.arange(6))))[1], change)


def test_holm_is_taken_within_a_measure():
    rng = np.random.default_rng(5)
    both = [
        simulated(rng, 5, n=100, keep=0.9, churn=0.1, measure="refusal"),
        simulated(rng, 20, n=100, keep=0.9, churn=0.1, measure="accuracy"),
    ]
    whole = effects(pair(pd.concat(both, ignore_index=True)))
    alone = effects(pair(both[0]))
    mine = whole[whole.measure == "refusal"]
    assert mine.p_holm.to_numpy() == pytest.approx(alone.p_holm.to_numpy())
    assert (mine.p_holm >= mine.p).all()
