"""The forms in which servers take prompts and give answers and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import GenerationError, SpecError
from mechprobe.generation.answer_text import (
    THOUGHT_TAIL,
    answer_text,
    thought_of_prompt,
    unless_cut,
)
from mechprobe.generation.api import ApiError, Endpoint, Reply, Request
from mechprobe.generation.base import Completion, FloatArray, Parity, StopReason
from mechprobe.generation.server_errors import shown_name
from mechprobe.models.end_tokens import end_tokens
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.models.thoughts import Marker, Parts, canonical, open_marker, split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STOPS: Final[dict[str, StopReason]] = {
    "stop": "eos",
    "length": "length",
    "content_filter": "filtered",
}
_UNLISTED: Final = 1e-3
"""Probability that may hide in tokens which a server did not list."""
_ABOVE: Final = 1e-3
"""How far above 0 rounding may put the logarithm of a probability, nats."""
_MARK: Final = "token_id:"
_MALFORMED: Final = (
    ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError,
)  # fmt: skip


def listed(choice: Mapping[str, Any]) -> dict[int, float]:
    """Log-probabilities by token id of the first generated token; empty where there are none.

    llama-server lists objects with `id` and `logprob`; vLLM a mapping whose keys are
    `token_id:N` when it was asked for `return_tokens_as_token_ids`. Keys that are text are left
    out: several tokens may read alike.

    Args:
        choice: As the server sent it.

    Raises:
        ValueError: Something in it is no id or no log-probability. What is not even of the right
            shape raises as it happens; see `listed_in`.
    """
    found = choice.get("logprobs")
    if not isinstance(found, Mapping):
        return {}
    if content := found.get("content"):
        entries = content[0].get("top_logprobs") or ()
        return _entries((e["id"], e["logprob"]) for e in entries if e.get("id") is not None)
    steps = found.get("top_logprobs") or ()
    first = (steps[0] if steps else None) or {}
    return _entries(
        (int(key.removeprefix(_MARK)), value)
        for key, value in first.items()
        if key.startswith(_MARK)
    )


def _entries(pairs: Iterable[tuple[Any, Any]]) -> dict[int, float]:
    found = {}
    for token, value in pairs:
        if type(token) is not int or isinstance(value, bool) or not value <= _ABOVE:  # or NaN
            raise ValueError("no id of a token, or no log-probability")
        found[token] = float(value)
    return found


def next_token_row(entries: Mapping[int, float], width: int) -> FloatArray:
    """One row over the vocabulary, from the tokens that a server listed.

    Args:
        entries: Log-probabilities (nats) by token id.
        width: Size of the vocabulary.

    Returns:
        Shape (width,). Tokens that were not listed: minus infinity if all of them together hold
        less than 0.1 % of the probability, else NaN, because nothing is known of them.
    """
    inside = {token: value for token, value in entries.items() if 0 <= token < width}
    values = np.array(list(inside.values()), np.float64)
    rest = 1.0 - float(np.exp(values).sum())
    row = np.full(width, -np.inf if rest < _UNLISTED else np.nan, np.float32)
    row[list(inside)] = values
    return row


def request_for(prompt: tuple[int, ...] | str, *, max_tokens: int, **options: Any) -> Request:
    """Token ids go on as they are; a text is a user message of the server's chat template."""
    if isinstance(prompt, str):
        return Request.chat([{"role": "user", "content": prompt}], max_tokens=max_tokens, **options)
    return Request.complete(prompt, max_tokens=max_tokens, return_token_ids=True, **options)


def asking(prompt: tuple[int, ...] | str, width: int, **options: Any) -> Request:
    """A request for the `width` likeliest next tokens."""
    return request_for(
        prompt, max_tokens=1, logprobs=width, return_tokens_as_token_ids=True, **options
    )


def read_completion(
    reply: Reply,
    prompt: tuple[int, ...] | str,
    *,
    endpoint: Endpoint,
    sample: int,
    seed: int | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    inside: Marker | None = None,
) -> Completion | ApiError:
    """An answer as every engine gives it; an error if it ended as no answer does.

    Args:
        reply: What the server sent.
        prompt: What it was sent.
        endpoint: The server; no part of its key is shown.
        sample: Which of the prompt's answers.
        seed: `Sampling.seed`, or None.
        tokenizer: The model's, which reads the ids that a server tells.
        inside: The marker of the thought that the prompt ends in.

    Raises:
        GenerationError: The server read other tokens than were sent, as it will every time.
    """
    stop = _STOPS.get(reply.stop)
    if stop is None:
        ended = shown_name(reply.stop, endpoint.key() or "") or "a reason that is no name"
        return ApiError.of(
            f"{endpoint}: an answer ended with {ended!r}, as no answer does", "refused"
        )
    ids = reply.choice.get("token_ids")
    ids = [] if ids is None else ids
    if not isinstance(ids, list) or any(type(token) is not int for token in ids):
        return ApiError.of(f"{endpoint}: an answer's token_ids are no list of ids", "garbled", 200)
    parity: Parity = "unverified"
    if not isinstance(prompt, str) and reply.prompt_tokens is not None:
        if reply.prompt_tokens != len(prompt):
            raise GenerationError(
                f"{endpoint}: read {reply.prompt_tokens} tokens where {len(prompt)} were sent; it "
                "changes the prompt"
            )
        parity = "ids"
    if stop == "eos" and tokenizer is not None and ids and ids[-1] in stop_tokens(tokenizer):
        ids = ids[:-1]
    if tokenizer is not None and ids and not isinstance(prompt, str):
        text, start = answer_text(tokenizer, prompt, ids)
    else:
        text, start = _told(reply, inside)
    text, start = unless_cut(text, start, stop)
    return Completion(
        text=text,
        ids=tuple(ids),
        stop=stop,
        prompt_tokens=reply.prompt_tokens or 0,
        sample=sample,
        seed=seed,
        parity=parity,
        reported_tokens=reply.completion_tokens,
        answer_start=start,
    )


def _told(reply: Reply, inside: Marker | None) -> tuple[str, int | None]:
    """An answer's text as every engine writes it, from the text that a server gives.

    A thought that the server keeps apart with nothing beside it is no answer: it was cut, or the
    turn ended within the thought.

    Args:
        reply: What the server sent.
        inside: The marker of the thought that the prompt ends in.
    """
    parts = split(reply.text, inside)
    if reply.thought.strip():
        parts = Parts(reply.thought, reply.text if reply.text.strip() else None)
    return canonical(parts), 0 if parts.thought is None else None


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer on every engine, as far as a tokenizer tells."""
    return frozenset(end_tokens(tokenizer.get_vocab()) | ({tokenizer.eos_token_id} - {None}))


def thoughts_of(
    prompts: Sequence[Sequence[int]] | Sequence[str] | EncodedPrompts,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Marker | None]:
    """Of each prompt, the marker of the thought that it ends in, as far as can be told."""
    if isinstance(prompts, EncodedPrompts):
        return [open_marker("".join(pieces[-THOUGHT_TAIL:])) for pieces in prompts.pieces]
    return [
        None if tokenizer is None or isinstance(one, str) else thought_of_prompt(tokenizer, one)
        for one in prompts
    ]


def listed_in(reply: Reply | ApiError, where: str) -> dict[int, float]:
    """`listed` of a reply.

    Args:
        reply: What came.
        where: The server, for messages.

    Raises:
        ApiError: It is none, or its log-probabilities are malformed.
    """
    if isinstance(reply, ApiError):
        raise reply
    with suppress(*_MALFORMED):  # not chained: their messages quote the server
        return listed(reply.choice)
    raise ApiError.of(f"{where}: its log-probabilities are malformed", "garbled", 200)


def plain_token(tokenizer: Any, where: str) -> int:
    """A token that reads as a plain letter or digit.

    Raises:
        SpecError: The tokenizer has none; `where` names the server.
    """
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token]))
        if len(text) == 1 and text.isascii() and text.isalnum():
            return token
    raise SpecError(f"{where}: the tokenizer has no token for a single letter")
