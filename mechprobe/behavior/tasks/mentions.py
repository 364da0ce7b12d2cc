"""Where an answer names an option, and whether it chooses or denies it there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mechprobe.behavior.multiple_choice import LETTERS
from mechprobe.behavior.tasks import phrases
from mechprobe.behavior.tasks.phrases import bare

_REACH = 400
"""Characters of a clause on either side of an option: answers that loop are clauses without end."""
_GAP = 20
"""Characters between a letter and the text of its option."""

Fate = Literal["chosen", "denied", "unclear"]
Said = tuple[int, Fate]
"""An option that stands at a place of a text, and what becomes of it there."""


@dataclass(frozen=True)
class Answer:
    """A clean text, and the options that it may name."""

    text: str
    texts: tuple[frozenset[str], ...]
    """Per option what means it, plain."""

    @property
    def letters(self) -> str:
        """Of the options, in order."""
        return LETTERS[: len(self.texts)]

    @cached_property
    def owners(self) -> dict[str, set[int]]:
        """Which options a plain text, with or without its article, means."""
        found: dict[str, set[int]] = {}
        for shorten in (bare, str):  # the whole text counts before one without its article
            own: dict[str, set[int]] = {}
            for option, mine in enumerate(self.texts):
                for one in mine:
                    own.setdefault(shorten(one), set()).add(option)
            found |= own
        return found

    @cached_property
    def option(self) -> re.Pattern[str]:
        """The longest text of an option at a place."""
        longest = sorted(filter(None, self.owners), key=len, reverse=True)
        words = "|".join(re.escape(one).replace(r"\ ", r"\s") for one in longest)
        return re.compile(rf"(?:(?:the|an?) )??({words or '(?!)'})(?!\w)", re.I)

    @cached_property
    def enumerated(self) -> frozenset[int]:
        """Where letters stand that only list the options: a line each, from the first one on."""
        found: set[int] = set()
        lines = list(phrases.LINE.finditer(self.text))
        for first in (k for k, line in enumerate(lines) if line[1].upper() == self.letters[:1]):
            run = lines[first : first + len(self.letters)]
            letters = "".join(line[1].upper() for line in run)
            gap = self.text.find("\n", run[0].end())
            if letters == self.letters or (letters[:2] == "AB" and run[1].start() == gap + 1):
                found |= {line.start(1) for line in run}
        return frozenset(found)

    @cached_property
    def last(self) -> int:
        """Where the text is last taken back, or -1."""
        found = phrases.TAKEN_BACK.finditer(self.hidden(self.text))
        return max((match.start() for match in found if match.start()), default=-1)

    @cached_property
    def _denials(self) -> re.Pattern[str] | None:
        own = {one for mine in self.texts for one in mine}
        denials = sorted((t for t in own if " " in t and _against(t)), key=len)
        longest = "|".join(re.escape(denial) for denial in reversed(denials))
        return re.compile(longest, re.I) if longest else None

    def hidden(self, text: str) -> str:
        """A text without what the options' own texts deny, at its length."""
        return self._denials.sub(lambda m: "#" * len(m[0]), text) if self._denials else text

    def text_at(self, start: int) -> tuple[set[int], int] | None:
        """The options whose text stands at a place and may end a clause, and where it ends."""
        match = self.option.match(self.text, start)
        if not match or not phrases.TEXT_ENDS.match(self.text, match.end()):
            return None
        return self.meant(match), match.end()

    def meant(self, match: re.Match[str]) -> set[int]:
        """The options that a match of `option` means."""
        return self.owners.get(" ".join(match[1].lower().split()), set())


def past(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where a pattern that begins at a place ends; the place itself where there is none."""
    match = pattern.match(text, start)
    return match.end() if match else start


def listed(answer: Answer, option: int, end: int) -> bool:
    """Whether another option follows, by letter or text, as in a list."""
    letter = phrases.ANOTHER.match(answer.text, end)
    if letter and answer.letters.find(letter[1]) not in (-1, option):
        return True
    start = past(phrases.AND, answer.text, end)
    other = answer.option.match(answer.text, start) if start > end else None
    ends = other and phrases.LISTED.match(answer.text, other.end())
    return bool(other and ends and option not in answer.meant(other))


def _against(text: str) -> bool:
    return bool(phrases.NEGATION.search(text) or phrases.REPROACH.search(text))


def _reported(before: str) -> bool:
    """Whether a clause up to an option tells what others say, or names no answer that is meant."""
    spoken = phrases.SPOKEN.finditer(before)
    if any(not phrases.OWN.search(before[: match.start()]) for match in spoken):
        return True
    kind = phrases.KIND_OF_ANSWER.search(before)
    return bool(kind and not phrases.MEANT.fullmatch(kind[1]))


def told(answer: Answer, start: int, end: int) -> bool:
    """Whether a sentence says that something is an option's text, or what that is or did."""
    before = answer.text[max(0, start - _REACH) : start].lower()
    against, before = phrases.NOT_BUT.search(before), re.split(r"[.!?;:,\n\u2014]", before)[-1]
    several, ends = " " in answer.text[start:end], phrases.TEXT_ENDS.match(answer.text, end)
    if against and ends and answer.option.search(against[1]):
        return True
    if phrases.TOLD_BEFORE.search(before) or answer.text[max(0, start - 2) : start] == ": ":
        return bool(several or ends or phrases.TOLD_OF_ONE.match(answer.text, end))
    after = phrases.TOLD_AFTER if several else phrases.TOLD_OF_ONE
    does = after.match(answer.text, end) or (several and ends)
    return bool(phrases.BEGINS.fullmatch(before) and does)


def following(answer: Answer, end: int) -> re.Match[str] | None:
    """The text of an option that goes with a letter that ends at a place."""
    ends = min(past(phrases.BETWEEN, answer.text, end), end + _GAP)
    for match in (answer.option.match(answer.text, at) for at in range(end, ends + 1)):
        if match and (" " in match[1] or phrases.LISTED.match(answer.text, match.end())):
            return match
    return None


def lettered(answer: Answer, letter: re.Match[str], *, marked: bool = False) -> Said:
    """What becomes of a letter, and whether another one or another option's text goes with it."""
    name = next(group for group in letter.groups() if group)
    option, place = answer.letters.index(name.upper()), letter.start() + letter[0].index(name)
    own = following(answer, place + 1)
    beside = answer.meant(own) if own else set()
    several = any(listed(answer, option, at) for at in (place + 1, own.end() if own else place + 1))
    if not marked:
        reach = max(map(len, answer.owners)) + _GAP
        for led in answer.option.finditer(answer.text, max(0, place - reach), place):
            if not phrases.BETWEEN_BACK.fullmatch(answer.text, led.end(), place):
                continue
            meant = answer.meant(led)
            # "No evidence that it was the old man. C.": another option, denied, does not contradict
            if option in meant or fate(answer, option, led.start(), led.end())[1] != "denied":
                beside, place = meant, led.start()
    if several or (beside and option not in beside):
        return option, "unclear"
    return fate(answer, option, place, letter.end(), marked=marked)


def _names(answer: Answer, sentence: str, start: int) -> bool:
    """Whether an option is named from a place of a sentence on."""
    letters = re.compile(rf"\b[{answer.letters}]\b")
    return bool(letters.search(sentence, start) or answer.option.search(sentence, start))


def fate(answer: Answer, option: int, start: int, end: int, *, marked: bool = False) -> Said:
    """What becomes of an option that stands at a place of a text.

    Args:
        answer: The text.
        option: Its position.
        start: Where it is named there.
        end: Where its name ends.
        marked: It leads as "B)" does; what follows is then its own words unless it is a judgement.
    """
    rest = answer.text[end : end + _REACH]
    words = rest.lstrip(" ).:")
    own = max(
        (t for t in answer.texts[option] if words[: len(t)].lower() == t), key=len, default=""
    )
    # "The answer is A. Red is not …" gives a reason, where "A) red is not …" judges the option
    if rest.startswith(".") and not marked and not phrases.TEXT_ENDS.match(words, len(own)):
        own = ""
    after = words[len(own) :] if own else rest.lstrip(" )")
    if answer.last >= end + len(rest) - len(after):
        return option, "unclear"
    before = answer.hidden(answer.text[max(0, start - _REACH) : start]).lower()
    held = phrases.ATTRIBUTED.search(re.split(r"[.!?;\n]", before)[-1])
    before = before[max((m.end() for m in phrases.STARTS.finditer(before)), default=0) :]
    before = phrases.NO_DOUBT.sub("surely", phrases.LEADING_REASON.sub("", before))
    whole, after = after, answer.hidden(after)
    ends = phrases.ENDS.search(after)
    clause = after[: ends.start()] if ends else after
    for against in phrases.AGAINST.finditer(clause):
        if phrases.LETTER.match(clause, against.end()) or answer.option.match(
            clause, against.end()
        ):
            clause = clause[: against.start()]
            break
    clause = phrases.NO_DOUBT.sub("surely", clause.lower())
    sentence = re.split(r"(?<=[.!?\n])", after.lower(), maxsplit=1)[0]
    yet = phrases.YET.search(sentence)
    if phrases.CORRECTION.search(sentence) or phrases.TAKEN_BACK.match(after):
        return option, "unclear"
    if yet and (
        _names(answer, whole[: len(sentence)], yet.end()) or _against(sentence[yet.end() :])
    ):
        return option, "denied"
    if held or _against(before) or phrases.SUPPOSED.search(before) or _reported(before):
        return option, "denied"
    judged = not marked or phrases.JUDGED.match(clause)
    if judged and (_against(clause) or (phrases.NAMING.search(before) and clause.strip())):
        return option, "denied"
    doubted = phrases.DOUBT.search(before) or sentence.endswith("?")
    return option, "unclear" if doubted else "chosen"
