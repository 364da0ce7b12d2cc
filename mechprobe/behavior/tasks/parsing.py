"""Which option a generated answer chooses, read with no benefit of the doubt.

An answer that names no option, or more than one, is unparsable: it is a class of its own and
never credited. What is read, in this order:

1. the answer is an option's letter or an option's text and nothing else;
2. it says which one the answer is ("the answer is B", "Option (C)"), always the same;
3. it begins with a letter and a mark ("B) …", "C: …"), or brackets one letter alone ("(B)");
4. it contains the text, of two words or more, of exactly one option.

From 2 on, an option with a negation in its clause ("I don't think the answer is B", "(A) is wrong")
makes the answer unparsable, but that in 2 another one may be said to be it ("Option (A) is wrong.
Option (C) is right."). So does a correction in the clause or after it ("A, no wait, B"). What an
option's own text denies is no negation, nor is a reason that follows ("B because it is not red") or
leads ("since nobody says so, C"), what the option is set against ("B, not A") or "no doubt".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from mechprobe.behavior.multiple_choice import LETTERS

_MARKS = re.compile(r"[*_`#>]+")
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?(?:\s*:)?)\s*(?:(?i:option)\s+)?"
    r"(?:\(([A-J])\)|([A-J])(?=\s*(?:$|[^\w\s'])|\s*\n|\s+(?:because|since|as|rather than|"
    r"instead of|is (?:the )?(?:correct|right|best|true))\b))"
)
_SAID = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s+(?:the option\s+)?(.+)")
_MARKED = re.compile(r"(?:^|(?<=\s))\(?([A-J])(?:\)|[.:](?=\s|$))")
_BRACKETED = re.compile(r"\(([A-J])\)")

_NEGATION = re.compile(
    r"n't\b|\b(?:no|not|nor|neither|never|none|nobody|nothing|cannot|dont|doesnt|isnt|cant|wont|"
    r"wrong|incorrect|false|untrue|unlikely|except|anything but|instead of|rather than|either|"
    r"rul(?:e|es|ed|ing) out|(?:exclud|eliminat)(?:e|es|ed|ing)|"
    r"(?:reject|doubt)(?:s|ed|ing|ful)?)\b"
)
_CORRECTION = re.compile(r"\b(?:wait|actually|or rather|i mean|scratch that|oops|correction)\b")
_TAKEN_BACK = re.compile(
    r"(?:^\W*|[.!?;\n][^\w.!?;\n]*)"
    r"(?:no[,.!;]|(?:no,? )?(?:wait|actually|or rather|i mean|scratch that|sorry|"
    r"oops|correction|on second thought)\b)"
)
_ENDS = ".!?;\n"
_REACH = 1000
"""Characters of a clause on either side of an option: answers that loop are clauses without end."""
_THUS = re.compile(r"\b(?:so|therefore|thus|hence)\b")
_LEADING_REASON = re.compile(r"^\W*(?:because|since|as)\b[^,]*,")
_RIGHT = re.compile(r"[.!?;:\n\u2013\u2014]|\s-\s|\b(?i:because|since|as)\b")
_AGAINST = re.compile(
    r"(?:^|,)\s*(?i:not|rather than|instead of)\s+(?i:option\s+)?"
    r"(?:\([A-J]\)|[A-J](?=\s*(?:$|[^\w\s'])))"
)
_NO_DOUBT = re.compile(
    r"\b(?:no|without|beyond)(?: (?:an?|any|all|reasonable|shadow of an?))* doubt\b"
)
_SUPPOSED = re.compile(r"\b(?:if|whether|unless|suppose|assuming)(?: \w+){0,2}\W*$")
_JUDGED = re.compile(
    r"\W*(?:is|isn't|isnt|was|wasn't|can|cannot|can't|could|couldn't|does|doesn't|would|wouldn't|"
    r"must|seems|looks|no|not|never|nor|or|wrong|incorrect|false)\b"
)

Said = tuple[int, Literal["chosen", "denied", "taken back"]]
"""An option that stands at a place of a text, and what becomes of it there."""


def _straight(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def plain(text: str) -> str:
    """Lower case, single spaces, straight apostrophes, no marks of emphasis, no full stop."""
    return " ".join(_MARKS.sub("", _straight(text)).lower().split()).strip(" .!\"'")


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
        contained: Whether step 4 is taken.

    Returns:
        None where it names none, or more than one: unparsable.
    """
    letters = LETTERS[: len(options)]
    texts = [
        {plain(option), *map(plain, aliases[i] if aliases else ())}
        for i, option in enumerate(options)
    ]
    stripped = _laid(_MARKS.sub("", text))
    alone = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", stripped)
    if alone and alone.group(1).upper() in letters:
        return letters.index(alone.group(1).upper())
    whole = _only(texts, plain(stripped))
    if whole is not None:
        return whole
    if stated := _stated(stripped, texts, letters):
        denied = {option for option, fate in stated if fate == "denied"}
        return _certain({one for one in stated if one[1] != "denied"}, but=denied)
    if marked := _marked(stripped, texts, letters):
        return _certain(marked)
    return _certain(_contained(stripped, texts)) if contained else None


def _certain(found: set[Said], but: Collection[int] = ()) -> int | None:
    """The one option that was found, where it is chosen and none of some others."""
    option, fate = found.pop() if len(found) == 1 else (None, "")
    return option if fate == "chosen" and option not in but else None


def _only(texts: Sequence[set[str]], said: str) -> int | None:
    """The one option whose text this is."""
    found = [i for i, mine in enumerate(texts) if said and said in mine]
    return found[0] if len(found) == 1 else None


def _laid(text: str) -> str:
    """Lines without white space around or twice within them, none empty; straight apostrophes."""
    lines = (" ".join(line.split()) for line in _straight(text).splitlines())
    return "\n".join(line for line in lines if line)


def _hidden(text: str, texts: Sequence[set[str]]) -> str:
    """A text without what the options' own texts deny, at its length."""
    denials = sorted((t for mine in texts for t in mine if _NEGATION.search(t)), key=len)
    longest = "|".join(re.escape(denial) for denial in reversed(denials) if " " in denial)
    return re.sub(longest, lambda m: "#" * len(m[0]), text, flags=re.I) if longest else text


def _last_word(text: str, texts: Sequence[set[str]]) -> int:
    """Where a text is last taken back, or -1."""
    taken = _TAKEN_BACK.finditer(_hidden(text, texts).lower())
    return max((m.start() for m in taken if m.start()), default=-1)


def _fate(
    option: int,
    text: str,
    start: int,
    end: int,
    texts: Sequence[set[str]],
    last: int,
    *,
    marked: bool = False,
) -> Said:
    """What becomes of an option that stands at a place of a text.

    Args:
        option: Its position.
        text: The answer, as `_laid` leaves it.
        start: Where it is named there.
        end: Where its name ends.
        texts: Texts of all options.
        last: Where the answer is last taken back.
        marked: It leads as "B)" does; what follows is then its own words unless it is a judgement.
    """
    rest = text[end : end + _REACH]
    words = rest.lstrip(" ).:")
    own = max((t for t in texts[option] if words[: len(t)].lower() == t), key=len, default="")
    after = words[len(own) :] if own else rest.lstrip(" )")
    if last >= end + len(rest) - len(after):
        return option, "taken back"
    before, after = (_hidden(part, texts) for part in (text[max(0, start - _REACH) : start], after))
    before = before[max(before.rfind(mark) for mark in _ENDS) + 1 :].lower()
    before = before[max((thus.end() for thus in _THUS.finditer(before)), default=0) :]
    before = _NO_DOUBT.sub("surely", _LEADING_REASON.sub("", before))
    right = _RIGHT.search(after)
    clause = after[: right.start()] if right else after
    clause = _NO_DOUBT.sub("surely", _AGAINST.split(clause, maxsplit=1)[0].lower())
    sentence = re.split(r"[.!?\n]", after.lower(), maxsplit=1)[0]
    if _CORRECTION.search(sentence) or _TAKEN_BACK.match(after.lower()):
        return option, "taken back"
    judged = not marked or _JUDGED.match(clause)
    if _NEGATION.search(before) or _SUPPOSED.search(before):
        return option, "denied"
    return option, "denied" if judged and _NEGATION.search(clause) else "chosen"


def _stated(text: str, texts: Sequence[set[str]], letters: str) -> set[Said]:
    last = _last_word(text, texts)
    found = {
        _fate(letters.index(m[1] or m[2]), text, m.start(), m.end(), texts, last)
        for m in _STATED.finditer(text)
        if (m[1] or m[2]) in letters
    }
    if found:
        return found
    for line in text.splitlines():
        said = plain(line)
        match = _SAID.search(said)
        option = _only(texts, match[1]) if match else None
        if match and option is not None:
            last = _last_word(said, texts)
            found.add(_fate(option, said, match.start(), match.end(), texts, last))
    return found


def _marked(text: str, texts: Sequence[set[str]], letters: str) -> set[Said]:
    leads, last = bool(_MARKED.match(text)), _last_word(text, texts)
    return {
        _fate(letters.index(m[1]), text, m.start(), m.end(), texts, last, marked=leads)
        for m in (_MARKED if leads else _BRACKETED).finditer(text)
        if m[1] in letters
    }


def _contained(text: str, texts: Sequence[set[str]]) -> set[Said]:
    said = text.lower()
    last = _last_word(said, texts)
    hits = {
        (option, i, match.span())
        for i, mine in enumerate(texts)
        for option in mine
        if " " in option
        for match in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)".replace(r"\ ", r"\s"), said)
    }
    # an option that only stands within a longer one that was found was not named itself
    named = {option for option, _, _ in hits}
    return {
        (i, "chosen") if _NEGATION.search(option) else _fate(i, said, *span, texts, last)
        for option, i, span in hits
        if not any(option != other and option in other for other in named)
    }
