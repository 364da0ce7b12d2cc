"""Generated ids become the text of an answer, its thought marked as every family's is here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mechprobe.generation.base import Completion, StopReason
from mechprobe.models.thoughts import Marker, Parts, canonical, open_marker, split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHT_TAIL = 32
"""Tokens at the end of a prompt that hold the longest marker."""


def thought_of_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> Marker | None:
    """The marker of the thought that a prompt ends in, None where it ends in none."""
    return open_marker(
        str(tokenizer.decode(list(prompt[-THOUGHT_TAIL:]), skip_special_tokens=False))
    )


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
) -> tuple[str, int | None]:
    """The text of an answer, and how many ids come before what it says.

    Special tokens are seen before they are skipped: many families mark their thoughts by them.

    Args:
        tokenizer: The model's.
        prompt: Token ids.
        ids: Generated ids without the one that ended them.

    Returns:
        The text as in `models.thoughts`. None in place of the number where generation ended within
        a thought.
    """

    def decode(first: int, last: int, *, skip: bool) -> str:
        return str(tokenizer.decode(list(ids[first:last]), skip_special_tokens=skip))

    def reach(count: int) -> int:
        return len(decode(0, count, skip=False))

    raw = decode(0, len(ids), skip=False)
    parts = split(raw, thought_of_prompt(tokenizer, prompt))
    if parts.answer is None:
        return canonical(parts), None
    if parts.thought is None:
        said, first = decode(0, len(ids), skip=True), 0
    else:
        counts = range(len(ids) + 1)
        end = len(raw) if parts.end is None else parts.end
        first = bisect_left(counts, parts.begin, key=reach)
        last = bisect_right(counts, end, key=reach) - 1
        said = parts.answer
        if first <= last:
            border = raw[parts.begin : reach(first)], raw[reach(last) : end]
            said = decode(first, last, skip=True).join(border)
    return canonical(replace(parts, answer=said)), first


def unless_cut(text: str, start: int | None, stop: StopReason) -> tuple[str, int | None]:
    """`answer_text`'s result, with nothing to read where the answer was cut before its first word.

    Tokens were spent, on special ones or on spaces; an empty answer would be a refusal.
    """
    parts = split(text)
    if stop != "length" or parts.answer is None or parts.answer.strip():
        return text, start
    return canonical(Parts(parts.thought or "", None)), None


def completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    ids: Sequence[int],
    stop: StopReason,
    **more: Any,
) -> Completion:
    """What an engine in process generated, as a `Completion`.

    Args:
        tokenizer: As in `answer_text`, like all that follow.
        prompt: Token ids.
        ids: Generated.
        stop: How they ended.
        more: Further fields of the completion.
    """
    text, start = unless_cut(*answer_text(tokenizer, prompt, ids), stop)
    return Completion(text, tuple(ids), stop, len(prompt), answer_start=start, **more)
