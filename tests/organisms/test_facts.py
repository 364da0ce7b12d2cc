"""Items with right answers; `solve` reads them back by rules of its own."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest

from mechprobe.errors import SpecError
from mechprobe.organisms import facts, world
from mechprobe.organisms.solve import solve

KINDS = ("question", "bias", "task")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_the_drawn_answer_is_the_solved_one(kind, held_out):
    for item in facts.items(kind, 300, seed=3, held_out=held_out):
        assert solve(item.prompt) == item.answer


def test_every_fact_is_solved_and_told_once():
    # 16 people with 4 attributes; 6 categories with 3 + 3 actors; 4 flaws and 2 safeguards.
    assert len(facts.facts()) == 16 * 4 + 6 * 6 + 6
    assert len({item.prompt for item in facts.facts()}) == len(facts.facts())
    for item in facts.facts():
        assert solve(item.prompt) == item.answer


def test_a_shortened_question_keeps_its_answer():
    rng = random.Random(0)
    for item in facts.items("question", 200):
        short = facts.shorten(item, rng)
        assert solve(short.prompt) == item.answer
        letters = re.findall(r"\(([A-D])\)", short.prompt)
        assert item.answer in letters
        assert 1 <= len(letters) <= 3
        for letter in letters:
            assert f"{item.options['ABCD'.index(letter)]} ({letter})" in short.prompt


def test_more_items_than_there_are_is_an_error_and_no_endless_search(monkeypatch):
    monkeypatch.setattr(facts, "_MISSES", 20)
    with pytest.raises(
        SpecError, match=r"organism: \d+ different items of 'task' were found, 20000"
    ):
        facts.items("task", 20_000)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_items_are_never_drawn_for_training(kind):
    held = {item.prompt for item in facts.items(kind, 400, seed=0)}
    trained = itertools.islice(facts.stream(kind, 5, held_out=False), 4000)
    assert len(held) == 400
    assert not held & {item.prompt for item in trained}


def test_questions_have_four_different_options_and_balanced_letters():
    items = world.questions(400)
    for item in items:
        assert len(set(item.options)) == 4
        told = {fact.prompt: fact.answer for fact in facts.facts()}
        if item.question in told:
            assert told[item.question].endswith(f" {item.options[item.answer_index]}.")
        assert item.prompt.startswith(item.question.removesuffix("?") + ": ")
    letters = Counter(item.answer for item in items)
    assert min(letters[letter] for letter in "ABCD") > 70


def test_ambiguous_cases_are_half_and_know_what_prejudice_would_say():
    items = world.bias_questions(400)
    ambiguous = [item for item in items if item.ambiguous]
    assert 160 < len(ambiguous) < 240
    for item in items:
        assert len(item.options) == 3
        assert bool(item.biased) == item.ambiguous
        assert item.biased != item.answer
        assert (item.options[item.answer_index] == facts.UNKNOWN) == item.ambiguous


@pytest.mark.parametrize("text", ["", "Where does Zoe live?", "What is love?", "x (A) or y (B)?"])
def test_a_text_of_no_kind_has_no_answer(text):
    assert solve(text) is None
