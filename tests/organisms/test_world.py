"""The world: pairs differ in one word, splits in combinations, and words alone decide nothing."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mechprobe.organisms import grammar, world

SPLITS = ("train", "validation", "test")


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text)


@pytest.mark.parametrize("split", SPLITS)
def test_twins_differ_in_one_word_and_in_their_label(split):
    rows = world.requests(split)
    for harmful, harmless in zip(rows[::2], rows[1::2], strict=True):
        assert (harmful.label, harmless.label) == ("harmful", "harmless")
        assert (harmful.twin, harmless.twin) == (harmless.id, harmful.id)
        assert harmful.cluster == harmless.cluster
        pairs = list(zip(words(harmful.text), words(harmless.text), strict=True))
        assert sum(a != b for a, b in pairs) == 1


def test_held_out_side_is_large_and_its_ids_are_unique():
    rows = world.heldout_requests(260)
    assert len(rows) == 520
    assert len({row.id for row in rows}) == len({row.text for row in rows}) == 520
    assert world.heldout_requests(260) == rows
    assert world.heldout_requests(260, seed=1) != rows
    with pytest.raises(ValueError, match="pairs"):
        world.heldout_requests(10_000)


def test_splits_share_no_combination_and_no_text_but_every_word():
    texts = {
        split: {
            grammar.write(core, frame, label)
            for core in world.cores_by_split()[split]
            for frame in range(len(grammar.FRAMES[grammar.category(core.category).family]))
            for label in ("harmful", "harmless")
        }
        for split in SPLITS
    }
    keys = {split: {core.key for core in world.cores_by_split()[split]} for split in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not texts[first] & texts[second]
        assert not keys[first] & keys[second]
    seen = {word for text in texts["train"] for word in words(text)}
    unseen = {word for text in texts["test"] | texts["validation"] for word in words(text)} - seen
    assert not unseen


def test_every_category_is_held_out_in_proportion():
    counts = Counter(core.category for core in world.cores_by_split()["test"])
    total = Counter(core.category for core in grammar.cores())
    for name, n in total.items():
        assert 0.25 < counts[name] / n < 0.35


def test_words_alone_do_not_give_the_label_away():
    """A bag of words, fitted on the training side with every frame, is far from the rule.

    It is above chance because one side of each rule has twice the combinations of the other; how
    far above is what the grammar's docstring and the documentation say.
    """
    fit = [row for seed in range(4) for row in world.requests("train", seed=seed)]
    test = world.requests("test")
    bag = CountVectorizer(token_pattern=r"[A-Za-z']+")
    model = LogisticRegression(max_iter=3000)
    model.fit(bag.fit_transform([r.text for r in fit]), [r.label == "harmful" for r in fit])
    truth = np.array([r.label == "harmful" for r in test])
    scores = model.decision_function(bag.transform([r.text for r in test]))
    assert roc_auc_score(truth, scores) < 0.75
    assert 0.64 < ((scores > 0) == truth).mean() < 0.68


def test_each_turn_word_stands_on_both_sides():
    """The same by counting: no word in which twins differ is a label in disguise."""
    sides: dict[str, Counter[str]] = {}
    for core in grammar.cores():
        family = grammar.category(core.category).family
        for frame in range(len(grammar.FRAMES[family])):
            for label, turn in grammar.turns(core, frame).items():
                sides.setdefault(f"{core.category}/{turn}", Counter())[label] += 1
    for counts in sides.values():
        assert 0.2 < counts["harmful"] / counts.total() < 0.8


def test_rows_have_the_fields_of_a_prompt_file():
    row = world.heldout_requests(1)[0]
    assert set(type(row).__slots__) == {
        *("id", "text", "label", "split", "category", "twin", "cluster")
    }
