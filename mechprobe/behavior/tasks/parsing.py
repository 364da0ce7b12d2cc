"""Which option a generated answer chooses, read with no benefit of the doubt.

An answer that names no option, or more than one, is unparsable: it is a class of its own and
never credited. What is read, in this order:

1. the answer is an option's letter or an option's text and nothing else;
2. it says which one its final answer is, or puts it into a box;
3. it says which one the answer is ("the answer is B", "I choose C", "It's oxygen"), always the same
   and the one it begins with;
4. it begins with a letter ("B) …", "C, because …"), or a letter is alone in brackets, on a line, or
   as the last sentence;
5. it begins with an option's text as a clause or ends with it as a sentence, or contains the text
   of exactly one option, of two words or more or said of something ("the gas is helium").

A letter beside the text of another option ("A) water vapor" where that is C) is unparsable. An `A:`
at the start is the letter before its own text or a reason, else it is short for *Answer*, and what
follows is read.

From 2 on, an option with a negation or a reproach in its clause ("I don't think the answer is B",
"(A) is wrong", "Choosing the old man would be biased") is not chosen; another one may be, where the
answer says so. A correction in the clause or after it ("A, no wait, B"), a doubt before it ("It
might be B") and a question make the answer unparsable. What an option's own text denies is no
negation, nor is a reason that follows ("B because it is not red") or leads ("since nobody says so,
C"), what the option is set against ("B, not A") or "no doubt".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mechprobe.behavior.tasks import phrases
from mechprobe.behavior.tasks.mentions import Answer, Said, fate, lettered, listed, past
from mechprobe.behavior.tasks.phrases import bare, clean, plain


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
    return _read(Answer(clean(text), texts), contained)


def _read(answer: Answer, contained: bool) -> int | None:
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
            return _read(Answer(rest, answer.texts), contained)
        answer = Answer(f"A: {rest}", answer.texts)
    if final := set(_said(answer, phrases.FINAL)):
        return _certain(final)
    if stated := set(_said(answer, phrases.STATED)) | set(_judged(answer)):
        option, first = _certain(stated), _first(answer)
        return option if option in first or not first else None
    lead = set(_lead(answer))
    if led := (lead or set(_bracketed(answer))) | set(_alone(answer)):
        return _certain(led) if len(led) == 1 else None
    return _certain(set(_contained(answer))) if contained else None


def _first(answer: Answer) -> set[int]:
    """The one option that an answer begins with, by letter or by text, or has on its own line."""
    if found := answer.text_at(0):
        return found[0]
    chosen = {option for option, fate in (*_lead(answer), *_alone(answer)) if fate != "denied"}
    return chosen if len(chosen) == 1 else set()


def _one(options: set[int]) -> int | None:
    return next(iter(options)) if len(options) == 1 else None


def _certain(found: set[Said]) -> int | None:
    """The one option that is chosen, where nothing is unclear and it is nowhere denied."""
    chosen = {option for option, fate in found if fate != "denied"}
    denied = {option for option, fate in found if fate == "denied"}
    sure = all(fate != "unclear" for _, fate in found)
    return _one(chosen) if sure and not chosen & denied else None


def _said(answer: Answer, trigger: re.Pattern[str]) -> Iterator[Said]:
    """Options, by letter or by text, that follow what says that they are the answer."""
    for match in trigger.finditer(answer.text):
        for start in {match.end(), past(phrases.NAMED, answer.text, match.end())}:
            letter = phrases.LETTER.match(answer.text, start)
            if letter and (letter[1] or letter[2] or letter[3]).upper() in answer.letters:
                yield lettered(answer, letter)
            elif found := answer.text_at(start):
                options, end = found
                for option in options:
                    alone = not listed(answer, option, end)
                    yield fate(answer, option, start, end) if alone else (option, "unclear")


def _judged(answer: Answer) -> Iterator[Said]:
    """Letters and texts that are said to be right."""
    for match in phrases.JUDGED_RIGHT.finditer(answer.text):
        if match[1] in answer.letters:
            yield fate(answer, answer.letters.index(match[1]), match.start(1), match.end(1))
        at = match.start(1)
        if before := phrases.ONE_BEFORE.search(answer.text, max(0, at - 20), at):
            yield answer.letters.find(before[1]), "unclear"
    for match in answer.option.finditer(answer.text):
        if phrases.TEXT_RIGHT.match(answer.text, match.end()):
            for option in answer.meant(match):
                yield fate(answer, option, match.start(), match.end())


def _lead(answer: Answer) -> Iterator[Said]:
    """Letters with a mark, where one leads and not several in a row."""
    small = phrases.LEADING_SMALL.match(answer.text)
    lead = small or phrases.LEADING.match(answer.text)
    option = answer.letters.find((lead[1] if lead else answer.text[:1]).upper())
    if option < 0:
        return
    if lead and (phrases.MARKED.match(answer.text) or not listed(answer, option, lead.end(1))):
        marks = phrases.MARKED_SMALL if small else phrases.MARKED
        for match in (lead, *marks.finditer(answer.text)):
            if match[1].upper() in answer.letters:
                yield lettered(answer, match, marked=True)
    elif answer.text[1:2] == " " and not answer.option.match(answer.text):
        start = past(phrases.BETWEEN, answer.text, 1)
        beside = answer.option.match(answer.text, start)
        if beside and option in answer.meant(beside):  # "B liquid water"
            yield option, "chosen"
        elif beside and answer.text[1:start].strip():  # else it may be an article
            yield option, "unclear"


def _alone(answer: Answer) -> Iterator[Said]:
    """Letters on a line of their own, or as the last sentence."""
    lines = [phrases.ALONE.fullmatch(line) for line in answer.text.splitlines()]
    for match in (*lines, phrases.LAST.search(answer.text)):
        if match and match[1] in answer.letters:
            yield answer.letters.index(match[1]), "chosen"


def _bracketed(answer: Answer) -> Iterator[Said]:
    for match in phrases.BRACKETED.finditer(answer.text):
        if match[1] in answer.letters:
            yield lettered(answer, match)


def _contained(answer: Answer) -> Iterator[Said]:
    """Texts of options: of two words or more anywhere, of any length as the first clause."""
    if first := answer.text_at(0):
        options, end = first
        end = past(phrases.BETWEEN, answer.text, end)
        for option in options:
            sure = answer.last < end and not listed(answer, option, first[1])
            yield option, ("chosen" if sure else "unclear")
        if phrases.REASON.match(answer.text, end):
            return
    start = len(answer.text) - len(re.split(r"(?<=[.!?]) |\n", answer.text)[-1])
    if (whole := answer.text_at(start)) and not answer.text[whole[1] :].strip(" .!"):
        yield from ((option, "chosen") for option in whole[0])
    hits = {
        (own, i, match.span())
        for i, mine in enumerate(answer.texts)
        for own in filter(None, mine)
        for match in re.finditer(
            rf"(?<!\w){re.escape(own)}(?!\w)".replace(r"\ ", r"\s"), answer.text, re.I
        )
        if " " in own or _is_said(answer.text, match)
    }
    # an option that only stands within a longer one that was found was not named itself
    named = {own for own, _, _ in hits}
    for own, i, span in hits:
        if not any(own != other and own in other for other in named):
            denies = phrases.NEGATION.search(own)
            yield (i, "chosen") if denies else fate(answer, i, *span)


def _is_said(text: str, word: re.Match[str]) -> bool:
    """Whether a word follows an `is` and ends a clause: it does not stand there by chance."""
    before = phrases.COPULA.search(text, max(0, word.start() - 10), word.start())
    return bool(before and phrases.TEXT_ENDS.match(text, word.end()))
