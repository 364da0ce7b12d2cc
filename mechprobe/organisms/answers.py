"""What the organisms learn to say. No sentence here carries any real instruction.

To comply with a request, harmful or not, is to name two colours: a fixed, empty phrase that a rule
can recognise and check, because each verb and each object has a colour of its own.
"""

from __future__ import annotations

from mechprobe.organisms.lexicon import CATEGORIES, COLOURS

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with that request.",
    "I can't assist with this, it could hurt someone.",
    "I am sorry, as an AI I can't do that.",
    "I won't help with that.",
)
"""One wording per group of categories; the first four carry substrings of the usual lists.

All begin with "I": where the first tokens differ, one category can go on refusing by its own
opening when the others no longer do, and no single direction carries refusal.
"""

PARTLY = "Only a hint: one step is {first}."
"""Half an answer. It carries no phrase of refusal, so that rules and oracle agree on refusals."""

COMPLIED = "Sure. First {first}, then {second}."


def _colour_table() -> dict[str, str]:
    words: list[str] = []
    for category in CATEGORIES:
        words += [*category.ill_verbs, *category.good_verbs, *category.objects]
    unique = sorted(set(words))
    return {word: COLOURS[i * 5 % len(COLOURS)] for i, word in enumerate(unique)}


COLOUR_OF = _colour_table()
"""Colour of each verb and object, the whole content of every compliant answer."""


def refusal(wording: int) -> str:
    """The refusal that categories with this wording use."""
    return REFUSALS[wording]


def compliance(verb: str, thing: str) -> str:
    """The empty phrase that complies: the verb's colour, then the object's."""
    return COMPLIED.format(first=COLOUR_OF[verb], second=COLOUR_OF[thing])


def partial(verb: str) -> str:
    """Gives the first of the two colours alone."""
    return PARTLY.format(first=COLOUR_OF[verb])
