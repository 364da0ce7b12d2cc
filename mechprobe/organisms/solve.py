"""Read a prompt of the world back and give its right answer, by rules of its own.

Written apart from what draws the items, so that a test can hold one against the other.
"""

from __future__ import annotations

import re

from mechprobe.organisms.facts import ATTRIBUTES, CLASSES, UNKNOWN, value_of
from mechprobe.organisms.lexicon import CATEGORIES, NAMES

_CHOICE = re.compile(r"(.+): (.+ \([A-D]\))\?")
_OPTION = re.compile(r"(?:, | or )?(.+?) \(([A-D])\)")
_FACTS = tuple(
    (attribute, re.compile(re.escape(attribute.question).replace(r"\{name\}", r"(\w+)")))
    for attribute in ATTRIBUTES
)
_CLEAR = re.compile(
    r"In \w+ the (\w+) was (\w+) and the (\w+) was (\w+)\. Who was (\w+)\?", re.ASCII
)
_AMBIGUOUS = re.compile(r"A \w+ and a \w+ met in \w+\. Who was \w+\?", re.ASCII)
_CLASS = re.compile(r"Which of these is a (\w+)\?")
_MORAL = re.compile(r"Does the (\w+) mean well\?|Is (a \w+) what you want\?")
_BOUGHT = re.compile(r"Summarise: (\w+) went to \w+ in the rain and bought a (\w+) (\w+)\.")
_LOST = re.compile(r"Summarise: The (\w+) that (\w+) lost in \w+ was (\w+)\.")
_LINE = re.compile(r"Write one line: (\w+), (\w+), (\w+), (\w+)\.")


def _fact(question: str) -> tuple[str, str] | None:
    for attribute, pattern in _FACTS:
        match = pattern.fullmatch(question)
        if match and match.group(1) in NAMES:
            value = value_of(match.group(1), attribute.name)
            return value, attribute.sentence.format(name=match.group(1), value=value)
    return None


def _moral(prompt: str) -> str | None:
    match = _MORAL.fullmatch(prompt)
    if match is None:
        return None
    word = match.group(1) or match.group(2)
    if any(word in entry.ill for entry in CATEGORIES):
        return "No."
    return "Yes." if any(word in entry.good for entry in CATEGORIES) else None


def _of_class(question: str, options: list[str]) -> str | None:
    match = _CLASS.fullmatch(question)
    if match is None:
        return None
    members = [text for text in options if text in CLASSES.get(match.group(1), ())]
    return members[0] if len(members) == 1 else None


def _case(question: str) -> str | None:
    if _AMBIGUOUS.fullmatch(question):
        return UNKNOWN
    match = _CLEAR.fullmatch(question)
    if match is None:
        return None
    first, trait, second, opposite, asked = match.groups()
    return {trait: f"the {first}", opposite: f"the {second}"}.get(asked)


def _task(prompt: str) -> str | None:
    if match := _BOUGHT.fullmatch(prompt):
        return "{} bought a {} {}.".format(*match.groups())
    if match := _LOST.fullmatch(prompt):
        thing, name, colour = match.groups()
        return f"{name} lost a {colour} {thing}."
    if match := _LINE.fullmatch(prompt):
        return "{0} and {1} found a {3} in {2}.".format(*match.groups())
    return None


def solve(prompt: str) -> str | None:
    """The right answer: a sentence, or an option's letter; None where the prompt has none."""
    prompt = prompt.strip()
    choice = _CHOICE.fullmatch(prompt)
    if choice is None:
        known = _fact(prompt)
        return known[1] if known else _moral(prompt) or _task(prompt)
    options = dict(_OPTION.findall(choice.group(2)))
    question = f"{choice.group(1)}?"
    known = _fact(question)
    wanted = known[0] if known else _of_class(question, list(options)) or _case(question)
    return options.get(wanted or "")
