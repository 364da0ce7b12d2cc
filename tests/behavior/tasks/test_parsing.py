"""Hand-made answers to one question, right and wrong, empty, gibberish and unparsable."""

import pytest

from mechprobe.behavior.tasks.parsing import parse_choice

OPTIONS = ("the red door", "the blue door", "Not enough info")
ALIASES = ((), (), ("cannot be determined", "unknown"))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1),
        ("b", 1),
        (" (B). ", 1),
        ("**B**", 1),
        ("B)", 1),
        ("B) the blue door", 1),
        ("B. the blue door", 1),
        ("B: because it was painted", 1),
        ("(C) Not enough info", 2),
        ("The answer is B.", 1),
        ("The answer is **B**", 1),
        ("the answer is (A) I think", 0),
        ("Answer: C", 2),
        ("I would choose option A.", 0),
        ("The correct answer is B because it is blue.", 1),
        ("The answer is the blue door.", 1),
        ("the blue door", 1),
        ("The Blue Door!", 1),
        ("She went through the red door, of course.", 0),
        ("It cannot be determined from the text.", 2),
        ("Unknown", 2),
        ("The answer is unknown.", 2),
        ("First I thought of A) but no. The answer is B.", 1),
        ("The answer is B. It is not red.", 1),
        ("The answer is B because it is not red.", 1),
        ("B: it does not say red", 1),
        ("B) the blue door. A is wrong.", 1),
        ("Since nobody knows, the answer is C.", 2),
        ("The text does not say, so the answer is (C).", 2),
        ("(C) Not enough info: no wall was seen", 2),
        ("The text doesn't say, it cannot be determined.", 2),
        ("I don't know. Not enough info.", 2),
        ("The answer is B, no doubt.", 1),
        ("There is no doubt: the answer is B.", 1),
        ("Beyond a shadow of a doubt, the answer is B.", 1),
        ("The correct answer is (C), not (A).", 2),
        ("The answer is B, not A.", 1),
        ("The answer is C rather than A.", 2),
        ("Option A is incorrect. Option C is correct.", 2),
        ("Option (A) is incorrect. Option (C) is correct.", 2),
    ],
)
def test_an_option_that_is_named_is_read(text, chosen):
    assert parse_choice(text, OPTIONS, aliases=ALIASES) == chosen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "qzx vlorp 7 flim",
        "A door is a door.",
        "The answer is A door that nobody saw.",
        "I am B",
        "D",
        "The answer is D.",
        "A and B",
        "A) the red door B) the blue door C) Not enough info",
        "The answer is A. No, the answer is B.",
        "It was the red door or the blue door.",
        "flib unknown zzz",
        "unknown unknown door red",
        "door",
        "Sure, here is a poem about doors.",
        "?",
        "AB",
        "The answer is not (A).",
        "The answer isn\N{RIGHT SINGLE QUOTATION MARK}t (A).",
        "I don't think the answer is B.",
        "I don't think the answer is the blue door.",
        "(A) is wrong.",
        "A) is wrong.",
        "It cannot be (A).",
        "Not (B)",
        "Neither (A) nor the others",
        "I would rule out (A).",
        "The answer is A, no wait, B.",
        "The answer is A. No, wait. It is blue.",
        "The answer is A, or rather the other one.",
        "B) the blue door... actually, the first",
        "It is not the red door; nobody would paint it so.",
        "It wasn't the red door.",
        "It was the red door. Scratch that.",
        "Either the red door or some other.",
        "I doubt the answer is B.",
        "There is no doubt that the answer is not B.",
        "The answer is not B, rather than A.",
        "Option B is NOT A good choice.",
        "Option (B) is not A good choice.",
        "Option B is correct. Option (B) is not correct.",
        "Option (A) is wrong. Option (B) is wrong.",
        "(A) the red door (C) not enough",
        "If option A is correct the door is red.",
    ],
)
def test_what_names_no_option_or_two_is_unparsable(text):
    assert parse_choice(text, OPTIONS, aliases=ALIASES) is None


def test_an_option_within_a_longer_one_was_not_named_itself():
    options = ("in the sea", "not in the sea")
    assert parse_choice("It is not in the sea.", options) == 1
    assert parse_choice("It is in the sea.", options) == 0


def test_equal_options_cannot_be_told_apart_by_their_text():
    assert parse_choice("six of them", ("six of them", "six of them")) is None
    assert parse_choice("B", ("six of them", "six of them")) == 1


def test_a_word_alone_counts_only_as_the_whole_answer():
    assert parse_choice("30", ("6", "30")) == 1
    assert parse_choice("The answer is 30.", ("6", "30")) == 1
    assert parse_choice("30 monkeys saw 12 of them", ("6", "30")) is None


@pytest.mark.parametrize(
    ("again", "chosen"),
    [
        ("A) the red door ", 0),
        ("(A) ", 0),
        ("the blue door\n", 1),
        ("A) ... ", 0),
        ("answer\n\n", None),
        ("A: ", 0),
        ("the red door, ", 0),
        ("so ", None),
    ],
)
def test_an_answer_that_goes_round_in_circles_is_read_in_time(again, chosen):
    """20,000 characters, where work by the cube of their number would take an hour."""
    assert parse_choice(again * (20_000 // len(again)), OPTIONS) == chosen
