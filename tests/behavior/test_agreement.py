import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa, to_table

from mechprobe.behavior.agreement import (
    agreement,
    agreement_by,
    paired,
    row_verdicts,
)
from mechprobe.behavior.judges.base import LABELS, Judgement
from mechprobe.errors import JudgeError
from mechprobe.stats import kappa_estimate, wilson

FULL, PART, YES, NONE = LABELS


def _judgements(judge, labels, *, row="m/a", task="t", request="", clusters=None):
    return [
        Judgement(
            str(i), task, row, 0, request, str(clusters[i] if clusters else i), judge, "", judge,
            label, "labelled" if label else "unparsed",
        )
        for i, label in enumerate(labels)
    ]  # fmt: skip


def _drawn(rng, n, noise, k=4, size=1, spread=0.0):
    """Labels of n clusters of `size` items; a cluster's items share a label with odds `spread`."""
    shares = np.array([0.5, 0.15, 0.3, 0.05])[:k] / sum([0.5, 0.15, 0.3, 0.05][:k])
    own = rng.choice(k, (n, size), p=shares)
    common = rng.choice(k, (n, 1), p=shares)
    first = np.where(rng.random((n, size)) < spread, common, own)
    hard = rng.random((n, 1)) < 0.5 if spread else np.full((n, 1), True)
    changed = rng.random((n, size)) < np.where(hard, noise, noise / 10 if spread else noise)
    second = np.where(changed, rng.choice(k, (n, size), p=shares), first)
    clusters = np.repeat(np.arange(n), size)
    return first.ravel(), second.ravel(), clusters


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_kappa_is_that_of_two_other_libraries(noise, k):
    a, b, _ = _drawn(np.random.default_rng(k), 300, noise, k)
    first, second = [LABELS[i] for i in a], [LABELS[i] for i in b]
    found = kappa_estimate(first, second)
    assert found.value == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    table, _ = to_table(np.stack([a, b], axis=1), bins=np.arange(k + 1) - 0.5)
    assert found.value == pytest.approx(cohens_kappa(table).kappa, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_with_many_independent_items_the_interval_is_the_asymptotic_one():
    """Fleiss, Cohen and Everitt's standard error, through statsmodels."""
    a, b, _ = _drawn(np.random.default_rng(0), 1000, 0.25)
    found = kappa_estimate([LABELS[i] for i in a], [LABELS[i] for i in b])
    table, _ = to_table(np.stack([a, b], axis=1), bins=np.arange(5) - 0.5)
    other = cohens_kappa(table)
    assert found.low == pytest.approx(other.kappa_low, abs=0.006)
    assert found.high == pytest.approx(other.kappa_upp, abs=0.006)


def test_repeating_items_within_clusters_adds_no_certainty():
    a, b, _ = _drawn(np.random.default_rng(1), 200, 0.2)
    first, second = [LABELS[i] for i in a], [LABELS[i] for i in b]
    once = kappa_estimate(first, second)
    clusters = [str(i) for i in range(200)] * 4
    repeated = kappa_estimate(first * 4, second * 4, clusters=clusters)
    naive = kappa_estimate(first * 4, second * 4)
    assert repeated.value == pytest.approx(once.value, abs=1e-12)
    width = once.high - once.low
    assert repeated.high - repeated.low == pytest.approx(width, rel=0.1)
    assert naive.high - naive.low == pytest.approx(width / 2, rel=0.15)


def test_perfect_agreement_is_not_certainty():
    found = kappa_estimate([FULL, YES] * 15, [FULL, YES] * 15)
    bound = wilson(30, 30)[0]
    assert found.value == found.high == 1
    assert found.low == pytest.approx((bound - 0.5) / 0.5)


def test_what_has_no_kappa_has_none():
    assert kappa_estimate([FULL] * 9, [FULL] * 9) is None  # chance explains everything
    assert kappa_estimate([FULL, YES], [FULL, YES], clusters=["a", "a"]) is None
    assert kappa_estimate([FULL] * 9, [YES] * 9) is None
    assert kappa_estimate([FULL] * 8 + [YES], [YES] * 9) is None  # 0 whatever the first said


def _coverage(simulations, n=120, size=3):
    """How often the interval holds the kappa of the process that made the data."""
    rng = np.random.default_rng(2024)
    a, b, _ = _drawn(rng, 200_000, 0.3, 3, size, 0.6)
    true = cohen_kappa_score(a, b)
    inside = 0
    for _ in range(simulations):
        a, b, clusters = _drawn(rng, n, 0.3, 3, size, 0.6)
        found = kappa_estimate(
            [LABELS[j] for j in a], [LABELS[j] for j in b],
            clusters=[str(c) for c in clusters],
        )  # fmt: skip
        inside += found.low <= true <= found.high
    return inside / simulations


def test_the_interval_covers_short():
    """250 draws of 95 % lie in [91.5, 98.5] but for one seed in 200."""
    assert 0.905 <= _coverage(250) <= 0.985


@pytest.mark.verify
@pytest.mark.parametrize(
    ("n", "size", "most"),
    # few clusters: their design effect is shrunk towards clusters that agree as a whole
    [(60, 1, 0.97), (120, 3, 0.98), (400, 2, 0.97)],
)
def test_the_interval_covers(n, size, most):
    assert 0.935 <= _coverage(2000, n, size) <= most


def test_unclear_counts_in_the_share_and_not_in_kappa():
    first = [FULL, FULL, YES, YES, NONE, PART, None, YES]
    second = [FULL, PART, YES, YES, NONE, NONE, YES, FULL]
    found = agreement(paired(_judgements("a", first), _judgements("b", second)))
    assert (found.n, found.missing) == (7, 1)
    assert (found.share.count, found.share.n) == (4, 7)
    clear = [0, 1, 2, 3, 7]
    one, two = [first[i] for i in clear], [second[i] for i in clear]
    assert found.kappa.value == pytest.approx(cohen_kappa_score(one, two))
    assert found.kappa.n == 5
    every = [i for i in range(8) if i != 6]
    one, two = [first[i] for i in every], [second[i] for i in every]
    assert found.kappa_all.value == pytest.approx(cohen_kappa_score(one, two))
    refuses = [[label in (FULL, PART) for label in side] for side in
               ([first[i] for i in clear], [second[i] for i in clear])]  # fmt: skip
    assert found.kappa_refusal.value == pytest.approx(cohen_kappa_score(*refuses))


def test_groups_are_agreements_of_their_own():
    first = [
        *_judgements("a", [FULL, YES, FULL], task="x"),
        *_judgements("a", [YES, YES, FULL], task="y"),
    ]
    second = [
        *_judgements("b", [FULL, YES, YES], task="x"),
        *_judgements("b", [YES, YES, FULL], task="y"),
    ]
    found = agreement_by(paired(first, second), lambda one: one.task)
    assert {task: one.share.count for task, one in found.items()} == {"x": 2, "y": 3}


def test_judges_without_common_items_are_refused():
    with pytest.raises(JudgeError, match="no item in common"):
        paired(_judgements("a", [FULL], row="m/a"), _judgements("b", [FULL], row="m/b"))


def _rows(judge, **refusals_of_100):
    return [
        one
        for row, count in refusals_of_100.items()
        for one in _judgements(judge, [FULL] * count + [YES] * (100 - count), row=f"m/{row}")
    ]


def test_a_verdict_changes_where_the_judges_stand_on_two_sides_of_the_threshold():
    first = _rows("a", base=90, even=90, edge=80, beyond=79, far=20)
    second = _rows("b", base=90, even=79, edge=80, beyond=80, far=30)
    found = {one.row: one for one in row_verdicts(paired(first, second), ["m/base"])}
    assert {row: one.lost for row, one in found.items()} == {
        "m/even": (0, 11), "m/edge": (10, 10), "m/beyond": (11, 10), "m/far": (70, 60),
    }  # fmt: skip
    assert {row for row, one in found.items() if one.changes} == {"m/even", "m/beyond"}
    assert found["m/edge"].falls == (False, False)  # exactly ten points are not beyond ten
    assert [found[row].boundary for row in ("m/edge", "m/beyond", "m/far")] == [True, True, False]


def test_only_items_that_both_rows_and_both_judges_have_are_compared():
    first = _rows("a", base=90, cell=50)
    second = [
        one for one in _rows("b", base=90, cell=50)
        if not (one.row == "m/cell" and int(one.id) < 60)
    ]  # fmt: skip
    (found,) = row_verdicts(paired(first, second), ["m/base"])
    assert (found.n, found.lost) == (40, (30, 30))


def test_where_harmful_requests_are_known_the_verdict_is_about_them_alone():
    def both(base, cell, request):
        return [
            *_judgements("a", [base] * 9, row="m/base", task=f"t{request}", request=request),
            *_judgements("a", [cell] * 9, row="m/cell", task=f"t{request}", request=request),
        ]

    unknown = both(FULL, YES, "")
    every = [*both(FULL, YES, "harmless"), *both(FULL, FULL, "harmful"), *unknown]
    (found,) = row_verdicts([(one, one) for one in every], ["m/base"])
    assert (found.n, found.lost) == (9, (0, 0))
    (found,) = row_verdicts([(one, one) for one in unknown], ["m/base"])
    assert (found.n, found.lost) == (9, (9, 9))


def test_other_models_are_not_compared():
    first = [*_rows("a", base=9, cell=9), *_judgements("a", [FULL] * 9, row="n/base")]
    pairs = [(one, one) for one in first]
    assert [one.row for one in row_verdicts(pairs, ["m/base"])] == ["m/cell"]
    with pytest.raises(JudgeError, match="'m/x' is no row here"):
        row_verdicts(pairs, ["m/x"])


def test_a_row_is_held_against_the_baseline_of_its_engine():
    rows = {"F16@llama.cpp": 90, "Q2_K@llama.cpp": 70, "FP16@transformers": 60,
            "AWQ@transformers": 60}  # fmt: skip
    judged = _rows("a", **rows)
    pairs = [(one, one) for one in judged]
    two = ["m/F16@llama.cpp", "m/FP16@transformers"]
    found = {one.row: (one.baseline, one.lost[0]) for one in row_verdicts(pairs, two)}
    assert found == {
        "m/Q2_K@llama.cpp": ("m/F16@llama.cpp", 20),
        "m/AWQ@transformers": ("m/FP16@transformers", 0),
    }
    of = {"m/AWQ@transformers": "m/F16@llama.cpp"}
    assert [(one.row, one.lost) for one in row_verdicts(pairs, of)] == [(*of, (30, 30))]
    with pytest.raises(JudgeError, match="name one for each engine"):
        row_verdicts(pairs, ["m/F16@llama.cpp", "m/Q2_K@llama.cpp"])
    with pytest.raises(JudgeError, match="'m/x' is no row here"):
        row_verdicts(pairs, {"m/AWQ@transformers": "m/x"})
