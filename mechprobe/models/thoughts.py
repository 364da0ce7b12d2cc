"""Where a thought ends and the answer begins, whichever way a family of models marks it.

Engines see the markers before special tokens are skipped, and know whether the prompt ends inside
a thought; they write every thought as `<think>…</think>`, an unfinished one as `<think>…`. So the
text of an answer says by itself whether there is an answer to read, in every file that keeps it.
Texts of other origin are read by the same table.

Sources: the models' chat templates, and llama.cpp's parsers of what they answer (`common/chat.cpp`,
`common/parsers`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final, Literal

OPEN, CLOSE = "<think>", "</think>"
"""How a thought is written here."""


@dataclass(frozen=True, slots=True)
class Marker:
    """How some families mark a thought; regular expressions."""

    families: str
    opening: str
    closing: str
    kind: Literal["tag", "special", "prose"]
    """A `tag` opens a thought at the start of a line, a `special` token anywhere. Both close one
    that the prompt opened. `prose` opens one at the very start, and closes only what it opened."""


_TAG = r"(?i:(?:\w+[:_])?(?:think|thinking|thoughts?|reasoning)(?::\w+)?(?:\s+[\w:-]+=[^<>]*)?)"
"""Whatever a family puts before or after the word, in capitals or not, with attributes or not."""
_GLUED = (
    r"(?!['\u2019](?:s\b|\W|\Z))"
    r"(?=[^\W_]|[\"'(*\u201c-\u201e\u2018\u2019\u00ab\u00bb\u00bf\u00a1\u3008-\u3010\uff08])"
)
_RUN_ON = rf"(?:(?=.*assistantfinal)|{_GLUED})"
"""What follows a channel's name where a server skips gpt-oss's special tokens: the end of the
channel somewhere, else a letter, a digit or an opening mark without a space between, in whatever
script. English goes on after neither name without one, but for the possessive."""
_FINAL = rf"final(?![a-z\u00df-\u024f]){_GLUED}"
"""The name of the answer's channel where no other came before it: `finalTake`. Words go on in small
Latin letters: `finally`."""
MARKERS: Final = (
    Marker(
        "DeepSeek, EXAONE, GLM, Granite 3.3, Hunyuan, Kimi K2, LFM, LongCat, Marco-o1, MiniMax,"
        " Nemotron, Phi-4, Qwen, Reka, Seed, SmolLM",
        rf"<{_TAG}>",
        rf"</{_TAG}>",
        "tag",
    ),
    Marker("Magistral, Ministral", r"\[THINK\]", r"\[/THINK\]", "tag"),
    Marker("Kimi-VL", "\u25c1think\u25b7", "\u25c1/think\u25b7", "tag"),
    Marker(
        "gpt-oss",
        r"<\|channel\|>(?:analysis|commentary)?(?:<\|message\|>)?",
        r"(?:<\|start\|>assistant)?<\|channel\|>final(?: ?<\|constrain\|>\w+)?<\|message\|>",
        "special",
    ),
    Marker("Cohere", r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", "special"),
    Marker("Gemma 4", r"<\|channel>thought", r"<channel\|>", "special"),
    Marker("MedGemma", r"<unused94>thought", r"<unused95>", "special"),
    Marker("Apertus", r"<\|inner_prefix\|>", r"<\|inner_suffix\|>", "special"),
    Marker("Kimi K3", r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>", "special"),
    Marker("Solar", r"<\|think\|>", r"<\|content\|>", "special"),
    Marker("OpenThinker", r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>", "special"),
    Marker(
        "Muse", r" ?to=self<\|message\|>", r"(?:<\|start\|>assistant)? ?to=user<\|message\|>",
        "special",
    ),
    Marker("s1", r"<\|im_start\|>think", r"<\|im_start\|>answer", "special"),
    Marker("Apriel", r"Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]", "prose"),
    Marker(
        "Granite 3.2", r"Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:",
        "prose",
    ),
    Marker("KAT", r"<judge>", r"</judge>\s*<think_off>", "prose"),
    Marker("gpt-oss, skipped", rf"(?:analysis|commentary){_RUN_ON}", r"assistantfinal", "prose"),
    Marker("gpt-oss, skipped, no thought", _FINAL, rf"\A\s*{_FINAL}", "prose"),
)  # fmt: skip
WRAPS: Final = (
    (r"(?i:<(?:response|answer|output)>)", r"(?i:</(?:response|answer|output)>)"),
    (r"\[BEGIN FINAL RESPONSE\]", r"\[END FINAL RESPONSE\]"),
    (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    (r"<\|START_TEXT\|>", r"<\|END_TEXT\|>"),
    (r"<\|open\|>response<\|sep\|>", r"<\|close\|>response<\|sep\|>.*"),
    (r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
)
"""What some families put around the answer that follows a thought."""
_VERSION = 1
"""Raised when the code below reads the tables otherwise."""
DIGEST: Final = hashlib.sha256(
    json.dumps([_VERSION, [[m.opening, m.closing, m.kind] for m in MARKERS], WRAPS]).encode()
).hexdigest()
"""SHA-256 of all that decides where an answer begins, hex."""

_FIRST = [(m, re.compile(rf"\s*(?:{m.opening})", re.DOTALL)) for m in MARKERS]
_LAST = [(m, re.compile(rf"(?:{m.opening})\s*\Z")) for m in MARKERS]
_CLOSING = [(m, re.compile(m.closing)) for m in MARKERS]
_AGAIN = re.compile(
    "|".join(
        (rf"(?:^\s*(?:{m.opening}))" if m.kind == "tag" else f"(?:{m.opening})")
        for m in MARKERS
        if m.kind != "prose"
    ),
    re.MULTILINE,
)
_WRAP_BEGINS = re.compile(rf"\s*(?:{'|'.join(begin for begin, _ in WRAPS)})")
_WRAP_ENDS = re.compile(rf"\s*(?:{'|'.join(end for _, end in WRAPS)})\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parts:
    """A text, cut where its answer begins."""

    thought: str | None
    """None where the text has no thought."""
    answer: str | None
    """None where generation ended within the thought."""
    begin: int = 0
    """Where in the text the answer begins."""
    end: int | None = None
    """Where it ends; None is the end of the text."""


def open_marker(prompt: str) -> Marker | None:
    """The marker of the thought that a prompt ends in, None where it ends in none.

    Args:
        prompt: Its end, with special tokens.
    """
    return next((marker for marker, opening in _LAST if opening.search(prompt)), None)


def split(text: str, inside: Marker | None = None) -> Parts:
    """Cut a generated text at the last marker that closes a thought.

    Args:
        text: With special tokens where the family marks thoughts by them.
        inside: The marker of the thought that the prompt ends in.
    """
    first = next((marker for marker, opening in _FIRST if opening.match(text)), None)
    opened = (inside, first)
    at = max(
        (
            found.end()
            for marker, closing in _CLOSING
            if marker.kind != "prose" or marker in opened
            for found in closing.finditer(text)
        ),
        default=0,
    )
    if (not at and any(opened)) or _AGAIN.search(text[at:]):
        return Parts(text, None)
    if not at:
        return Parts(None, text)
    wrap = _WRAP_BEGINS.match(text, at)
    begin = wrap.end() if wrap else at
    closed = _WRAP_ENDS.search(text, begin)
    end = closed.start() if closed else None
    return Parts(text[:at], text[begin:end], begin, end)


def canonical(parts: Parts) -> str:
    """Parts as one text: `<think>…</think>answer`, `<think>…` where there is no answer yet."""
    if parts.thought is None:
        return parts.answer or ""
    thought = parts.thought
    for marker, opening in _FIRST:  # prose opens one at the very start alone
        begin = opening.match(thought + (parts.answer or "")) if marker.kind == "prose" else None
        thought = thought[begin.end() :] if begin else thought
        thought = thought if marker.kind == "prose" else opening.sub("", thought)
    for _, closing in _CLOSING:
        thought = closing.sub("", thought)
    return f"{OPEN}{thought}" if parts.answer is None else f"{OPEN}{thought}{CLOSE}{parts.answer}"


def answer_of(text: str) -> str | None:
    """The answer without its thought.

    Returns:
        None where the thought never ended: then there is no answer to read.
    """
    return split(text).answer


def is_unread(text: str) -> bool:
    """Whether generation ended within a thought; such answers are in no rate."""
    return answer_of(text) is None
