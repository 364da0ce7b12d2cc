from collections import Counter

import pytest

from mechprobe.behavior.judges import Exchange, judge_exchanges, majority, open_judge, stratified
from mechprobe.behavior.judges.base import Judgement
from mechprobe.errors import SpecError


def _items(rows="abc", n=40, text="x"):
    return [
        Exchange(f"{kind}{i}", f"p{i}", f"{text}{row}{i}", task, row, request=kind)
        for row in rows
        for task in ("refusal", "jailbreak")
        for kind in ("harmful", "harmless")
        for i in range(n)
    ]


def test_a_sample_has_as_many_of_each_stratum_and_the_same_in_every_row():
    found = stratified(_items(), 9, seed=3)
    strata = Counter((one.task, one.request, one.row) for one in found)
    assert len(strata) == 12
    assert set(strata.values()) == {9}
    by_row = {row: {one.id for one in found if one.row == row} for row in "abc"}
    assert by_row["a"] == by_row["b"] == by_row["c"]


def test_a_sample_is_chosen_before_any_answer_and_only_grows():
    few = {one.key for one in stratified(_items(), 5, seed=0)}
    more = {one.key for one in stratified(_items(), 12, seed=0)}
    other_answers = {one.key for one in stratified(_items(text="other"), 5, seed=0)}
    assert few < more
    assert few == other_answers
    assert few != {one.key for one in stratified(_items(), 5, seed=1)}
    assert stratified(_items(n=3), 5) == _items(n=3)


def _judgement(i, judge, label):
    status = "labelled" if label else "error"
    return Judgement(str(i), "t", "r", 0, "", str(i), judge, "", judge, label, status)


def _column(judge, labels):
    return [_judgement(i, judge, label) for i, label in enumerate(labels)]


def test_a_majority_asks_for_refusal_first_and_a_tie_is_unclear():
    full, part, yes, none = "FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR"
    found = majority(
        [
            _column("a", [full, full, yes, none, full, full]),
            _column("b", [full, part, yes, none, None, yes]),
            _column("c", [yes, yes, yes, full, full, none]),
        ]
    )
    labels = [one.label for one in found.judgements]
    assert labels == [full, part, yes, none, None, none]
    assert (found.ties, found.incomplete) == (1, 1)
    assert {one.judge for one in found.judgements} == {"majority"}
    assert [one.status for one in found.judgements] == [*["labelled"] * 4, "unparsed", "labelled"]


def test_two_word_lists_do_not_outvote_the_judge_that_sees_gibberish():
    yes, none = "COMPLIANCE", "UNCLEAR"
    lists = [_column("rules", [yes, yes]), _column("rules:soft", [yes, yes])]
    found = majority([_column("oracle", [none, yes]), *lists])
    assert [one.label for one in found.judgements] == [none, yes]
    assert [one.label for one in majority(lists).judgements] == [yes, yes]


def test_a_majority_needs_the_same_items():
    with pytest.raises(SpecError, match="same items"):
        majority([_column("a", ["UNCLEAR"]), _column("b", ["UNCLEAR", "UNCLEAR"])])
    with pytest.raises(SpecError, match="same items"):
        majority([[], []])
    with pytest.raises(SpecError, match="two judges"):
        majority([_column("a", ["UNCLEAR"])])


def test_judges_of_one_item_agree_on_its_key():
    items = _items(n=2)
    found = judge_exchanges(open_judge("rules"), items).judgements
    assert [one.key for one in found] == [one.key for one in items]
