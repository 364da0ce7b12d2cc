"""Prompts become token ids: once per model, by the baseline's tokenizer, for every engine.

Two cells may be compared only when they saw the same ids; the digest is how that is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechprobe.errors import ParityError, PromptFileError, TemplateError
from mechprobe.models.chat_template import read_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "raw"]
_INSTRUCTIONS = ("Name a colour", "Why is it so?")
"""Two that end in tokens of other kinds, since a template's next line may merge with either."""


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Return how many leading tokens all rows share, each keeping one of its own."""
    if not rows:
        return 0
    first, last = min(rows), max(rows)
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return min(shared, min(map(len, rows)) - 1)


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Token ids of a list of prompts, unpadded, in the order they were given.

    Positions count from the end (-1 is the last prompt token), because left padding and prompts
    of different lengths leave only the end in a fixed place.
    """

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    """The prompts as given, before the template."""
    pieces: tuple[tuple[str, ...], ...]
    """Each id as readable text, for looking at."""
    post_instruction: int
    """Tokens after the instruction, the same ids in every prompt; 1 at least."""
    template: Template
    notes: tuple[str, ...] = ()
    detour: str = ""
    """Why the first token of an answer is not the next one; empty where it is."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """The ids, prompt by prompt."""
        return iter(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the ids, hex: equal digests mean equal input on every engine."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def select(self, indices: Sequence[int]) -> EncodedPrompts:
        """The prompts at `indices`, in that order."""
        return EncodedPrompts(
            tuple(self.ids[i] for i in indices),
            tuple(self.texts[i] for i in indices),
            tuple(self.pieces[i] for i in indices),
            self.post_instruction,
            self.template,
            self.notes,
            self.detour,
        )

    def common_prefix(self) -> int:
        """Length in tokens of the prefix that all prompts share, each keeping one of its own."""
        return common_prefix(self.ids)

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens per prompt, shape (n_prompts,)."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def __repr__(self) -> str:
        """The first prompts, token by token."""
        shown = [" | ".join(repr(piece)[1:-1] for piece in row) for row in self.pieces[:3]]
        more = [f"… {len(self) - 3} more"] if len(self) > 3 else []
        head = f"EncodedPrompts({len(self)} prompts, {self.template}, {self.digest[:12]})"
        return "\n  ".join([head, *shown, *more])


def _shared_ending(rows: Sequence[Sequence[int]]) -> int:
    """How many ids at the end are the same in every row."""
    count = 0
    for column in zip(*(reversed(row) for row in rows), strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _beginnings(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The BOS, and what the tokenizer puts before a text by itself, whatever it is called.

    A GGUF file that names no BOS has llama.cpp's default one, which the tokenizer has no name for.
    """
    whole, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    return ({tokenizer.bos_token_id} - {None}) | (set(whole[:1]) - set(plain[:1]))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    template: Template = "chat",
    system: str | None = None,
    thinking: bool = False,
) -> EncodedPrompts:
    """Render prompts with the chat template and tokenize them.

    Args:
        tokenizer: The baseline's tokenizer; every cell of a model uses this one.
        prompts: User messages, n ≥ 1.
        template: `chat` applies the tokenizer's template; `raw` tokenizes the text alone, with
            the special tokens that the tokenizer adds by itself.
        system: A system prompt, where the template takes one; None leaves the template's own.
        thinking: Whether a reasoning model thinks before it answers. Off where the template has a
            switch for it; the notes say which, or that there is none.

    Raises:
        TemplateError: There is no chat template, it refused the messages, changed one or came to a
            limit, or does not do what is asked of it; see `chat_template`.
        PromptFileError: No prompts, an empty one, or one that is no string.
    """
    if not prompts:
        raise PromptFileError("no prompts were given; at least one is needed")
    other = next((i for i, text in enumerate(prompts) if not isinstance(text, str)), None)
    if other is not None:
        raise PromptFileError(
            f"prompt {other} is of type {type(prompts[other]).__name__}; give a user message as str"
        )
    blank = next((i for i, text in enumerate(prompts) if not text.strip()), None)
    if blank is not None:
        raise PromptFileError(f"prompt {blank} is empty")
    notes: tuple[str, ...] = ()
    detour = ""
    if template == "chat":
        chat = read_chat_template(tokenizer, system=system, thinking=thinking)
        notes, detour = chat.notes, chat.detour
        rendered = [chat.render(text) for text in (*prompts, *_INSTRUCTIONS)]
        lost = next((i for i, text in enumerate(prompts) if text.strip() not in rendered[i]), None)
        if lost is not None:
            raise TemplateError(
                f"prompt {lost}: the chat template does not print it as it is; pass another one "
                "(--chat-template FILE)"
            )
    else:
        if system is not None or thinking:
            what = "a system prompt" if system is not None else "thinking"
            raise TemplateError(f"{what} needs template='chat'")
        rendered = [*prompts, *_INSTRUCTIONS]
    ids = [
        tuple(tokenizer(text, add_special_tokens=template == "raw")["input_ids"])
        for text in rendered
    ]
    post = _shared_ending(ids)
    ids = ids[: len(prompts)]
    if any(row[:2] == (bos, bos) for row in ids for bos in _beginnings(tokenizer)):
        raise TemplateError("the rendered prompt begins with two BOS tokens")
    piece = {i: str(tokenizer.decode([i])) for i in {i for row in ids for i in row}}
    return EncodedPrompts(
        ids=tuple(ids),
        texts=tuple(prompts),
        pieces=tuple(tuple(piece[i] for i in row) for row in ids),
        post_instruction=max(post, 1),
        template=template,
        notes=notes,
        detour=detour,
    )


def require_parity(expected: str, found: str, what: str) -> None:
    """Refuse to compare results that were made from different token ids.

    Raises:
        ParityError: The digests differ.
    """
    if expected != found:
        raise ParityError(
            f"{what}: prompt digests differ ({expected[:12]} and {found[:12]}); render the "
            "prompts once with the baseline's tokenizer and give both cells the same ids"
        )


def require_answer_next(prompts: EncodedPrompts, what: str) -> None:
    """Refuse to read the next token as an answer's first where it is another's.

    Raises:
        TemplateError: The prompts end inside a thought, or the model has to write a header first.
    """
    if prompts.detour:
        raise TemplateError(
            f"{what}: not measured, since {prompts.detour}; a template that ends where the answer "
            "begins makes it possible (--chat-template FILE)"
        )
