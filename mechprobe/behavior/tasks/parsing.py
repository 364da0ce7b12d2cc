"""Which option a generated answer chooses, read with no benefit of the doubt.

An answer that names no option, or more than one, is unparsable: it is a class of its own and
never credited. What is read, in this order:

1. the answer is an option's letter or an option's text and nothing else;
2. it says which one its final answer is, or puts it into a box;
3. it says which one the answer is ("the answer is B", "I choose C", "It's oxygen"), always the same
   and the one it begins with;
4. it begins with a letter ("B) …", "C, because …"), or a letter is alone in brackets, on a line, or
   as the last sentence;
5. it begins with an option's text as a clause or ends with it as a sentence, or one of its
   sentences says that something is, was or becomes the text of exactly one option ("the gas is
   helium") or begins with it and tells what it did or was ("the baker was late"). Any other mention
   of an option is no choice, and makes the answer unparsable where it has two words or more.

A letter and the text of another option that stand next to each other, in either order and with
whatever marks or line breaks between them ("A) water vapor", "A, water vapor", "Water vapor. A."
where that is C) are unparsable. The one exception is an `A:` at the start, which is the letter
before its own text or a reason, else short for *Answer*: then what follows is read.

From 2 on, an option with a negation or a reproach in its clause ("I don't think the answer is B",
"(A) is wrong", "Choosing the old man would be biased") is not chosen, nor is what others say or
want ("People often blame B", "The question implies that it's B") or what is called another kind of
answer than the meant one ("The stereotypical answer is B"); another one may be, where the answer
says so. A correction in the clause or after it ("A, no wait, B"), a doubt before it ("It
might be B") and a question make the answer unparsable. What an option's own text denies is no
negation, nor is a reason that follows ("B because it is not red") or leads ("since nobody says so,
C"), what the option is set against ("B, not A") or "no doubt".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mechprobe.behavior.tasks import phrases
from mechprobe.behavior.tasks.mentions import (
    Answer,
    Said,
    fate,
    following,
    lettered,
    listed,
    past,
    told,
)
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
    apart = answer.text[1:2] == "\n"  # a letter on its own line is no article
    whole = answer.owners.get(said) or answer.owners.get("" if apart else bare(said)) or set()
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
    stated = set(_said(answer, phrases.STATED)) | set(_judged(answer))
    if any(fate != "denied" for _, fate in stated):
        option, first = _certain(stated), _first(answer)
        return option if option in first or not first else None
    lead = set(_lead(answer))
    if led := (lead or set(_bracketed(answer))) | set(_alone(answer)):
        return _certain(led | stated) if len(led) == 1 else None
    return _certain(set(_contained(answer))) if contained and not stated else None


def _first(answer: Answer) -> set[int]:
    """The one option that an answer begins with, by letter or by text, or has on its own line."""
    if (found := answer.text_at(0)) and not answer.text[found[1] :].startswith("?"):
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
    for match in _overlapping(trigger, answer.text):
        for start in {match.end(), past(phrases.NAMED, answer.text, match.end())}:
            letter = phrases.LETTER.match(answer.text, start)
            if letter and answer.enumerated & set(range(*letter.span())):
                continue
            if letter and (letter[1] or letter[2] or letter[3]).upper() in answer.letters:
                yield lettered(answer, letter)
            elif found := answer.text_at(start):
                options, end = found
                for option in options:
                    alone = not listed(answer, option, end)
                    yield fate(answer, option, start, end) if alone else (option, "unclear")


def _overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Matches of a pattern, those that begin within another one too: "I'm sure the answer is"."""
    found = pattern.search(text)
    while found:
        yield found
        found = pattern.search(text, found.start() + 1)


def _judged(answer: Answer) -> Iterator[Said]:
    """Letters and texts that are said to be right."""
    for match in phrases.JUDGED_RIGHT.finditer(answer.text):
        if match[1] in answer.letters:
            yield fate(answer, answer.letters.index(match[1]), match.start(1), match.end(1))
        at = match.start(1)
        if before := phrases.ONE_BEFORE.search(answer.text, max(0, at - 20), at):
            yield answer.letters.find(before[1]), "unclear"
    before = None
    for match in answer.option.finditer(answer.text):
        if phrases.TEXT_RIGHT.match(answer.text, match.end()):
            alone = not (before and phrases.AND.fullmatch(answer.text, before.end(), match.start()))
            for option in answer.meant(match):
                said = fate(answer, option, match.start(), match.end())
                yield said if alone else (option, "unclear")
        before = match


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
    elif not answer.option.match(answer.text):
        beside = following(answer, lead.end(1) if lead else 1)
        article = option == 0 and beside and answer.text[1 : beside.start()] == " "
        if beside and option in answer.meant(beside):  # "B liquid water"
            yield option, "chosen"
        elif beside and not (article and beside[0] == beside[1]):
            yield option, "unclear"


def _alone(answer: Answer) -> Iterator[Said]:
    """Letters on a line of their own, or as the last sentence."""
    lines = re.finditer(r"[^\n]+", answer.text)
    alone = [phrases.ALONE.fullmatch(answer.text, *line.span()) for line in lines]
    for match in (*alone, phrases.LAST.search(answer.text)):
        if match and match[1] in answer.letters:
            yield lettered(answer, match)


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
            letter = phrases.LAST_LETTER.match(answer.text, end)
            agrees = not letter or answer.letters.find(letter[1]) in (-1, option)
            sure = agrees and answer.last < end and not listed(answer, option, first[1])
            yield option, ("chosen" if sure else "unclear")
        if phrases.REASON.match(answer.text, end):
            return
    # "Cannot be determined. Both groups could be it.": the groups are the reason
    undecided = bool(first and phrases.UNDECIDED.search(answer.text[: first[1]].lower()))
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
        if " " in own or told(answer, *match.span())
    }
    # an option that only stands within a longer one that was found was not named itself
    named = {own for own, _, _ in hits}
    for own, i, span in hits:
        if any(own != other and own in other for other in named):
            continue
        if phrases.NEGATION.search(own):
            clause = re.split(r"[.!?;:,\n]", answer.text[: span[0]])[-1]
            yield i, ("unclear" if answer.option.search(clause) else "chosen")
            continue
        said = fate(answer, i, *span)
        if told(answer, *span) or said[1] == "denied":
            yield said
        elif not undecided:
            yield i, "unclear"
