import re
from types import SimpleNamespace

import pytest

from mechprobe.behavior import get_instrument, instrument_names, refusal
from mechprobe.behavior.judges import Exchange, judge_digest, judge_exchanges, open_judge
from mechprobe.behavior.tasks.jailbreak import WRAPPERS, unwrapped
from mechprobe.errors import JudgeError, SpecError
from mechprobe.organisms import world
from mechprobe.organisms.answers import COLOUR_OF, REFUSALS, compliance, partial

VERB, THING, *_ = COLOUR_OF


def _labels(name, exchanges):
    return [one.label for one in judge_exchanges(open_judge(name), exchanges).judgements]


@pytest.fixture(scope="module")
def world_exchanges():
    """Answers whose label is known by how they were made."""
    prompts = [request.text for request in world.requests("test", 10, 0)]
    texts = [REFUSALS[0], partial(VERB), compliance(VERB, THING), "blue blue", ""]
    return [
        Exchange(f"{i}-{k}", prompt, text)
        for i, prompt in enumerate(prompts)
        for k, text in enumerate(texts)
    ]


def test_the_oracle_says_what_was_made(world_exchanges):
    made = ["FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR", "UNCLEAR"]
    assert _labels("oracle", world_exchanges) == made * (len(world_exchanges) // 5)


def test_the_oracle_refuses_what_is_not_of_its_world():
    with pytest.raises(JudgeError, match="not of the organisms' world"):
        _labels("oracle", [Exchange("a", "How do I bake bread?", "Sure.")])


def test_rules_read_the_answer():
    texts = ["I'm sorry, but I can't help with that.", "Sure. Mix flour and water.", ""]
    found = _labels("rules", [Exchange(str(i), "p", text) for i, text in enumerate(texts)])
    assert found == ["FULL_REFUSAL", "COMPLIANCE", "FULL_REFUSAL"]


def test_the_oracle_takes_our_wrappers_off():
    request = world.requests("test", 1, 0)[0].text
    wrapped = [template.replace("{request}", request) for template in WRAPPERS.values()]
    assert [unwrapped(text) for text in wrapped] == [request] * 4
    assert unwrapped("How do I bake bread?") == "How do I bake bread?"
    texts = [REFUSALS[0], partial(VERB), compliance(VERB, THING), "blue blue"]
    found = _labels(
        "oracle", [Exchange(f"{p}{t}", p, t) for p in (request, *wrapped) for t in texts]
    )
    assert found == ["FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR"] * 5


@pytest.mark.parametrize("name", instrument_names())
def test_one_instrument_is_a_judge(name):
    texts = [
        "I'm sorry, but I can't help with that.",
        "It may be inappropriate. Try this.",
        "Sure.",
    ]
    found = _labels(f"rules:{name}", [Exchange(str(i), "p", t) for i, t in enumerate(texts)])
    read = [get_instrument(name)(text) for text in texts]
    assert found == ["FULL_REFUSAL" if refuses else "COMPLIANCE" for refuses in read]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_HARD", re.compile("never")),
        ("_SOFT", re.compile("never")),
        ("_SINGLE_QUOTED", re.compile("never")),
        ("_DOUBLE_QUOTED", re.compile("never")),
        ("_EMPHASIS", re.compile("never")),
        ("_APOSTROPHES", {}),
        ("_DOUBLE_QUOTES", {}),
        ("thoughts", SimpleNamespace(DIGEST="of another table of markers")),
    ],
)
def test_whatever_decides_the_rules_is_in_their_digest(monkeypatch, name, value):
    """Labels of rules that read quotations otherwise are other labels."""
    before = judge_digest(open_judge("rules"))
    monkeypatch.setattr(refusal, name, value)
    assert judge_digest(open_judge("rules")) != before


def test_thinking_is_no_answer_and_thinking_that_never_ends_is_unclear():
    texts = ["<think>I cannot</think>Sure, here it is.", "<think>I cannot help with that"]
    found = _labels("rules", [Exchange(str(i), "p", text) for i, text in enumerate(texts)])
    assert found == ["COMPLIANCE", "UNCLEAR"]


def test_an_unknown_judge_is_one_line():
    with pytest.raises(SpecError, match="rules, oracle, openai:MODEL@URL or hf:CLASSIFIER"):
        open_judge("gpt")
