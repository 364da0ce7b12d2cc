"""Which option a generated answer chooses, read with no benefit of the doubt.

An answer that names no option, or more than one, is unparsable: it is a class of its own and
never credited. What is read, in this order:

1. the answer is an option's letter or an option's text and nothing else;
2. it says which one its final answer is, or puts it into a box;
3. it says which one the answer is ("the answer is B", "I choose C", "It's oxygen"), always the same;
4. it begins with a letter ("B) …", "C, because …"), brackets one alone or gives it its own line;
5. it begins with an option's text as a clause, or contains the text, of two words or more, of
   exactly one option.

A letter beside the text of another option ("A) water vapor" where that is C) is unparsable. An `A:`
at the start may be the letter or short for *Answer*: it is the letter before its own text or a
reason, and else what follows is read.

From 2 on, an option with a negation or a reproach in its clause ("I don't think the answer is B",
"(A) is wrong", "Choosing the old man would be biased") is not chosen; another one may be, where the
answer says so. A correction in the clause or after it ("A, no wait, B"), a doubt before it ("It might
be B") and a question make the answer unparsable. What an option's own text denies is no negation,
nor is a reason that follows ("B because it is not red") or leads ("since nobody says so, C"), what
the option is set against ("B, not A") or "no doubt".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mechprobe.behavior.multiple_choice import LETTERS
from mechprobe.behavior.tasks import phrases
from mechprobe.behavior.tasks.phrases import bare, clean, plain

_REACH = 1000
"""Characters of a clause on either side of an option: answers that loop are clauses without end."""

Fate = Literal["chosen", "denied", "unclear"]
Said = tuple[int, Fate]
"""An option that stands at a place of a text, and what becomes of it there."""


@dataclass(frozen=True)
class _Answer:
    """A clean text, and the options that it may name."""

    text: str
    texts: tuple[frozenset[str], ...]
    """Per option what means it, plain."""

    @property
    def letters(self) -> str:
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
        return re.compile(rf"(?:(?:the|an?) )?({words})(?!\w)", re.I)

    @cached_property
    def last(self) -> int:
        """Where the text is last taken back, or -1."""
        found = phrases.TAKEN_BACK.finditer(self.hidden(self.text).lower())
        return max((match.start() for match in found if match.start()), default=-1)

    @cached_property
    def _denials(self) -> re.Pattern[str] | None:
        own = {one for mine in self.texts for one in mine}
        denials = sorted((t for t in own if " " in t and phrases.NEGATION.search(t)), key=len)
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
        return self.owners[" ".join(match[1].lower().split())]


def parse_choice(
    text: str,
    options: Sequence[str],
    *,
    aliases: Sequence[Sequence[str]] = (),
    contained: bool = True,
) -> int | None:
    """Position of the option that an answer chooses.

    Args:
        text: The answer, without a thinking block.
        options: Texts of the options, in the order of their letters.
        aliases: Per option, other texts that mean it.
        contained: Whether step 5 is taken.

    Returns:
        None where it names none, or more than one: unparsable.
    """
    texts = tuple(
        frozenset({plain(option), *map(plain, aliases[i] if aliases else ())})
        for i, option in enumerate(options)
    )
    return _read(_Answer(clean(text), texts), contained)


def _read(answer: _Answer, contained: bool) -> int | None:
    alone = phrases.ALONE.fullmatch(answer.text)
    letter = answer.letters.find(alone[1].upper()) if alone else -1
    said = plain(answer.text)
    whole = answer.owners.get(said) or answer.owners.get(bare(said)) or set()
    if letter >= 0 or whole:
        return _one(whole | ({letter} if letter >= 0 else set()))
    if abbreviated := phrases.ABBREVIATED.match(answer.text):
        rest = answer.text[abbreviated.end() :]
        own = answer.option.match(rest)
        if not (0 in answer.meant(own) if own else phrases.REASON.match(rest)):
            return _read(_Answer(rest, answer.texts), contained)
        answer = _Answer(f"A: {rest}", answer.texts)
    said = (
        set(_said(answer, phrases.FINAL))
        or set(_said(answer, phrases.STATED)) | set(_judged(answer))
    )
    if said:
        return _certain(said)
    if led := set(_led(answer)):
        return _certain(led) if len(led) == 1 else None
    return _certain(set(_contained(answer))) if contained else None


def _one(options: set[int]) -> int | None:
    return options.copy().pop() if len(options) == 1 else None


def _certain(found: set[Said]) -> int | None:
    """The one option that is chosen, where nothing is unclear and it is nowhere denied."""
    chosen = {option for option, fate in found if fate != "denied"}
    sure = all(fate != "unclear" for _, fate in found)
    return _one(chosen) if sure and not chosen & {o for o, fate in found if fate == "denied"} else None


def _said(answer: _Answer, trigger: re.Pattern[str]) -> Iterator[Said]:
    """Options, by letter or by text, that follow what says that they are the answer."""
    for match in trigger.finditer(answer.text):
        named = phrases.NAMED.match(answer.text, match.end())
        for start in {match.end(), named.end() if named else match.end()}:
            letter = phrases.LETTER.match(answer.text, start)
            if letter and (letter[1] or letter[2] or letter[3]).upper() in answer.letters:
                yield from _lettered(answer, letter)
            elif found := answer.text_at(start):
                options, end = found
                for option in options:
                    yield _fate(answer, option, start, end)


def _judged(answer: _Answer) -> Iterator[Said]:
    """Letters that are said to be right."""
    for match in phrases.JUDGED_RIGHT.finditer(answer.text):
        if match[1] in answer.letters:
            yield _fate(answer, answer.letters.index(match[1]), match.start(1), match.end(1))
        if before := phrases.ONE_BEFORE.search(answer.text[: match.start(1)]):
            yield answer.letters.find(before[1]), "unclear"


def _led(answer: _Answer) -> Iterator[Said]:
    """Letters with a mark where one leads; else those in brackets or on a line of their own."""
    lead = phrases.LEADING.match(answer.text) or phrases.LEADING_SMALL.match(answer.text)
    if lead and lead[1].upper() not in answer.letters:
        lead = None
    matches = [lead] if lead else []
    matches += (phrases.MARKED if lead else phrases.BRACKETED).finditer(answer.text)
    for match in matches:
        if match[1].upper() in answer.letters:
            yield from _lettered(answer, match, marked=bool(lead))
    for line in answer.text.splitlines():
        alone = phrases.ALONE.fullmatch(line)
        if alone and alone[1] in answer.letters:
            yield answer.letters.index(alone[1]), "chosen"
    leading = answer.letters.find(answer.text[:1])
    if leading >= 0 and not lead and answer.text[1:2] == " ":  # "B liquid water"
        found = answer.text_at(2)
        if found and leading in found[0]:
            yield leading, "chosen"


def _lettered(
    answer: _Answer, letter: re.Match[str], *, marked: bool = False
) -> Iterator[Said]:
    """What becomes of a letter, and whether another one or another option's text goes with it."""
    name = next(group for group in letter.groups() if group)
    option, place = answer.letters.index(name.upper()), letter.start() + letter[0].index(name)
    another = phrases.ANOTHER.match(answer.text, place + 1)
    ends = phrases.BETWEEN.match(answer.text, place + 1).end()
    follows = [answer.text_at(at) for at in range(place + 1, ends + 1)]
    beside = next((options for options, _ in filter(None, follows)), None)
    if not marked:
        for led in answer.option.finditer(answer.text, max(0, place - _REACH), place):
            if phrases.BETWEEN_BACK.fullmatch(answer.text, led.end(), place):
                beside, place = answer.meant(led), led.start()
    if (beside and option not in beside) or (another and another[1] in answer.letters):
        yield option, "unclear"
    else:
        yield _fate(answer, option, place, letter.end(), marked=marked)


def _fate(answer: _Answer, option: int, start: int, end: int, *, marked: bool = False) -> Said:
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
    own = max((t for t in answer.texts[option] if words[: len(t)].lower() == t), key=len, default="")
    after = words[len(own) :] if own else rest.lstrip(" )")
    if answer.last >= end + len(rest) - len(after):
        return option, "unclear"
    before = answer.hidden(answer.text[max(0, start - _REACH) : start]).lower()
    before = before[max((m.end() for m in phrases.STARTS.finditer(before)), default=0) :]
    before = phrases.NO_DOUBT.sub("surely", phrases.LEADING_REASON.sub("", before))
    after = answer.hidden(after)
    ends = phrases.ENDS.search(after)
    clause = after[: ends.start()] if ends else after
    for against in phrases.AGAINST.finditer(clause):
        if phrases.LETTER.match(clause, against.end()) or answer.option.match(clause, against.end()):
            clause = clause[: against.start()]
            break
    clause = phrases.NO_DOUBT.sub("surely", clause.lower())
    sentence = re.match(r"[^.!?\n]*\??", after.lower())[0]
    if phrases.CORRECTION.search(sentence) or phrases.TAKEN_BACK.match(after.lower()):
        return option, "unclear"
    if phrases.NEGATION.search(before) or phrases.SUPPOSED.search(before):
        return option, "denied"
    judged = not marked or phrases.JUDGED.match(clause)
    if judged and phrases.NEGATION.search(clause):
        return option, "denied"
    doubted = phrases.DOUBT.search(before) or sentence.endswith("?")
    return option, "unclear" if doubted else "chosen"


def _contained(answer: _Answer) -> Iterator[Said]:
    """Texts of options: of two words or more anywhere, of any length as the first clause."""
    if first := answer.text_at(0):
        options, end = first
        second = answer.text_at(phrases.BETWEEN.match(answer.text, end).end())
        for option in options:
            yield option, "unclear" if second and option not in second[0] else "chosen"
    hits = {
        (option, i, match.span())
        for i, mine in enumerate(answer.texts)
        for option in mine
        if " " in option
        for match in re.finditer(
            rf"(?<!\w){re.escape(option)}(?!\w)".replace(r"\ ", r"\s"), answer.text, re.I
        )
    }
    # an option that only stands within a longer one that was found was not named itself
    named = {option for option, _, _ in hits}
    for option, i, span in hits:
        if not any(option != other and option in other for other in named):
            denies = phrases.NEGATION.search(option)
            yield (i, "chosen") if denies else _fate(answer, i, *span)
