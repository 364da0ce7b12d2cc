"""Which option a generated answer chooses, read with no benefit of the doubt.

An answer that names no option, or more than one, is unparsable: it is a class of its own and
never credited. What is read, in this order:

1. the answer is an option's letter or an option's text and nothing else;
2. it says which one the answer is ("the answer is B", "Option (C)"), always the same;
3. it begins with a letter and a mark ("B) …", "C: …"), or brackets one letter alone ("(B)");
4. it contains the text, of two words or more, of exactly one option.

From 2 on, a negation in the clause that decides ("I don't think the answer is B", "(A) is wrong"),
or a correction in it or after it ("A, no wait, B"), makes the answer unparsable. What an option's
own text denies is no negation, nor is a reason that follows ("B because it is not red") or leads
("since nobody says so, C").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mechprobe.behavior.multiple_choice import LETTERS

_MARKS = re.compile(r"[*_`#>]+")
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)(?:\s+is)?(?:\s*:)?)\s*(?:(?i:option)\s+)?"
    r"(?:\(([A-J])\)|([A-J])(?=\s*(?:$|[^\w\s'])|\s*\n|\s+(?:because|since|as)\b))"
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
    r"(?:^|[.!?;\n])\W*(?:no[,.!;]|(?:no,? )?(?:wait|actually|or rather|i mean|scratch that|sorry|"
    r"oops|correction|on second thought)\b)"
)
_LEFT = re.compile(r".*(?:[.!?;\n]|\b(?:so|therefore|thus|hence)\b)", re.DOTALL)
_LEADING_REASON = re.compile(r"^\W*(?:because|since|as)\b[^,]*,")
_RIGHT = re.compile(r"[.!?;:\n\u2013\u2014]|\s-\s|\b(?:because|since|as)\b")
_JUDGED = re.compile(
    r"\W*(?:is|isn't|isnt|was|wasn't|can|cannot|can't|could|couldn't|does|doesn't|would|wouldn't|"
    r"must|seems|looks|no|not|never|nor|or|wrong|incorrect|false)\b"
)


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
    stripped = _MARKS.sub("", text).strip()
    alone = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", stripped)
    if alone and alone.group(1).upper() in letters:
        return letters.index(alone.group(1).upper())
    whole = _only(texts, plain(stripped))
    if whole is not None:
        return whole
    for found in (_stated(stripped, texts, letters), _marked(stripped, texts, letters)):
        if found:
            return _certain(found)
    return _certain(_contained(stripped, texts)) if contained else None


def _certain(found: set[int | None]) -> int | None:
    """The one option that was found; None stands for one that is denied or taken back."""
    return found.pop() if len(found) == 1 else None


def _only(texts: Sequence[set[str]], said: str) -> int | None:
    """The one option whose text this is."""
    found = [i for i, mine in enumerate(texts) if said and said in mine]
    return found[0] if len(found) == 1 else None


def _lined(text: str) -> str:
    """Line by line as the options' texts are, but with all full stops."""
    return "\n".join(" ".join(line.split()) for line in _straight(text).lower().splitlines())


def _unless_denied(
    option: int, text: str, start: int, end: int, texts: Sequence[set[str]], *, marked: bool = False
) -> int | None:
    """An option that stands at a place of a text, or None where that denies it or takes it back.

    Args:
        option: Its position.
        text: The answer.
        start: Where it is named there.
        end: Where its name ends.
        texts: Texts of all options.
        marked: It leads as "B)" does; what follows is then its own words unless it is a judgement.
    """
    denials = sorted((t for mine in texts for t in mine if _NEGATION.search(t)), key=len)
    before, after = _lined(text[:start]), _lined(text[end:])
    words = after.lstrip(" ).:")
    own = max((t for t in texts[option] if words.startswith(t)), key=len, default="")
    after = words[len(own) :] if own else after.lstrip(" )")
    for denial in reversed(denials):
        if " " in denial:
            before, after = before.replace(denial, "#"), after.replace(denial, "#")
    before = _LEADING_REASON.sub("", _LEFT.sub("", before))
    right = _RIGHT.search(after)
    clause = after[: right.start()] if right else after
    sentence = re.split(r"[.!?\n]", after, maxsplit=1)[0]
    if _CORRECTION.search(sentence) or _TAKEN_BACK.search(after):
        return None
    judged = not marked or _JUDGED.match(clause)
    denied = _NEGATION.search(before) or (judged and _NEGATION.search(clause))
    return None if denied else option


def _stated(text: str, texts: Sequence[set[str]], letters: str) -> set[int | None]:
    found = {
        _unless_denied(letters.index(m[1] or m[2]), text, m.start(), m.end(), texts)
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
            found.add(_unless_denied(option, said, match.start(), match.end(), texts))
    return found


def _marked(text: str, texts: Sequence[set[str]], letters: str) -> set[int | None]:
    leads = bool(_MARKED.match(text))
    return {
        _unless_denied(letters.index(m[1]), text, m.start(), m.end(), texts, marked=leads)
        for m in (_MARKED if leads else _BRACKETED).finditer(text)
        if m[1] in letters
    }


def _contained(text: str, texts: Sequence[set[str]]) -> set[int | None]:
    said = _lined(text)
    hits = {
        (option, i, match.span())
        for i, mine in enumerate(texts)
        for option in mine
        if " " in option
        for match in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)".replace(r"\ ", r"\s"), said)
    }
    # an option that only stands within a longer one that was found was not named itself
    return {
        i if _NEGATION.search(option) else _unless_denied(i, said, *span, texts)
        for option, i, span in hits
        if not any(option != other and option in other for other, _, _ in hits)
    }
