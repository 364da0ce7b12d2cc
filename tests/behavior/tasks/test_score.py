import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from statsmodels.stats.proportion import proportion_confint

from mechprobe.behavior.tasks import Item, Reading, Row, Scored, load_task, pair
from mechprobe.behavior.tasks.score import mean_score
from mechprobe.errors import ParityError


def rows(values, clusters=None):
    names = clusters or [f"c{i}" for i in range(len(values))]
    return [
        Row(Item(f"i{i}", "?", cluster), 0, "hand", Reading("x", value))
        for i, (value, cluster) in enumerate(zip(values, names, strict=True))
    ]


def test_a_share_has_wilsons_interval_and_counts_what_is_missing():
    score = mean_score("share", "all", rows([1.0] * 7 + [0.0] * 3 + [None] * 2))
    low, high = proportion_confint(7, 10, method="wilson")
    assert (score.value, score.n, score.missing) == (0.7, 10, 2)
    assert score.low == pytest.approx(low)
    assert score.high == pytest.approx(high)


def test_rows_that_share_clusters_are_resampled_together():
    rng = np.random.default_rng(0)
    per_cluster = rng.integers(0, 2, 40).astype(float)
    values = np.repeat(per_cluster, 5)
    score = mean_score("share", "all", rows(list(values), [f"c{i // 5}" for i in range(200)]))
    # by hand: with equal clusters the cluster bootstrap is the bootstrap of the cluster means
    found = bootstrap(
        (per_cluster,), np.mean, n_resamples=4000, rng=np.random.default_rng(1), method="BCa"
    ).confidence_interval
    assert score.low == pytest.approx(found.low, abs=0.03)
    assert score.high == pytest.approx(found.high, abs=0.03)
    alone = proportion_confint(values.sum(), 200, method="wilson")
    assert score.high - score.low > 1.8 * (alone[1] - alone[0])  # sqrt(5) = 2.24


def test_no_variation_is_not_certainty():
    clusters = [f"c{i // 2}" for i in range(20)]
    score = mean_score("bias", "all", rows([0.0] * 20, clusters), bounds=(-1.0, 1.0))
    # Tango's interval without a change in ten independent pairs: z² / (n + z²)
    end = 3.8414588 / 13.8414588
    assert (score.value, score.low, score.high) == pytest.approx((0.0, -end, end))
    none = mean_score("share", "all", rows([0.0] * 20, clusters))
    assert (none.low, none.high) == pytest.approx(proportion_confint(0, 10, method="wilson"))
    # pairs that split tell no less than single rows, and are not taken for more
    twins = mean_score("share", "all", rows([0.0, 1.0] * 10, clusters))
    assert (twins.low, twins.high) == pytest.approx(proportion_confint(10, 20, method="wilson"))


def test_nothing_to_read_is_not_measured():
    score = mean_score("share", "all", rows([None, None]))
    assert (score.value, score.low, score.n, score.missing) == (None, None, 0, 2)
    assert str(score) == "share (all, hand) not measured"


def scored(instrument="rules", items=4, prompts=None, texts=None, samples=1):
    task = load_task("refusal", "organism", n=items)
    answers = texts or ["I can't help with that."] * items * samples
    return task.score(answers, instrument, samples=samples, prompts=prompts)


def test_rows_pair_by_item_and_sample():
    texts = ["Sure.", "I won't help with that.", "Sure.", "Sure."] * 2
    cell, baseline = scored(texts=texts, samples=2), scored(samples=2)
    pairs = pair(cell, baseline)
    assert [(a.item.id, a.sample) for a, _ in pairs] == [(b.item.id, b.sample) for _, b in pairs]
    assert [a.reading.value - b.reading.value for a, b in pairs] == [-1, 0, -1, -1] * 2
    frame = cell.frame()
    assert list(frame["sample"]) == [0, 1] * 4
    assert set(frame["instrument"]) == {"rules"}
    assert "prompt" not in frame


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: scored("hard"), "instruments differ"),
        (lambda: scored(items=5), "items differ"),
        (lambda: scored(samples=2), "4 and 8 answers do not pair"),
        (lambda: scored(prompts="0" * 64), "prompt digests differ"),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(other, message):
    with pytest.raises(ParityError, match=message) as caught:
        pair(scored(prompts="1" * 64), other())
    assert "\n" not in str(caught.value)


def test_a_score_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="there are refusal_rate \\(harmful\\)"):
        scored().score("accuracy")
    assert math.isclose(scored().score("refusal_rate", "harmful").value, 1.0)
    assert isinstance(scored(), Scored)
