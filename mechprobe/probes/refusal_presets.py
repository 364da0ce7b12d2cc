"""Refusal tokens that were not found but named: by the user, or in a published list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechprobe.errors import SpecError, VocabularyError
from mechprobe.probes.refusal_tokens import RefusalTokens, piece_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRESETS: Mapping[str, tuple[tuple[int, str], ...]] = {
    "qwen": ((40, "I"), (2121, "As")),
    "llama2": ((306, "I"),),
    "llama3": ((40, "I"),),
    "gemma": ((235285, "I"),),
    "yi": ((59597, "I"),),
    "yi-extra": ((59597, "I"), (2301, "It"), (4786, "As")),
}
"""Id and text of each token in the published lists, from the code of Arditi et al. 2024
(arXiv 2406.11717). An id means something in one vocabulary only, so the text is checked."""


def given_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    ids: Sequence[int] = (),
    pieces: Sequence[str] = (),
) -> RefusalTokens:
    """Refusal tokens that the user names, by id or as text.

    Args:
        tokenizer: The model's.
        ids: Token ids.
        pieces: Texts of one token each; `"I"` and `" I"` may be two tokens.

    Raises:
        SpecError: None were named.
        VocabularyError: An id does not exist, or a text is not one token.
    """
    found = [_known(tokenizer, token) for token in ids]
    for piece in pieces:
        split = list(tokenizer(piece, add_special_tokens=False)["input_ids"])
        if len(split) != 1 or piece_of(tokenizer, split[0]).strip() != piece.strip():
            parts = " | ".join(piece_of(tokenizer, token) for token in split)
            raise VocabularyError(
                f"refusal token {piece!r} is {len(split)} tokens here ({parts}); name one token"
            )
        found.append(split[0])
    unique = tuple(dict.fromkeys(found))
    if not unique:
        raise SpecError("refusal tokens: name at least one id or piece")
    return RefusalTokens(unique, tuple(piece_of(tokenizer, token) for token in unique), "given")


def named_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> RefusalTokens:
    """Refusal tokens that the user writes, as text or as `id:N`; see `given_tokens`."""
    numbers = [name.removeprefix("id:") for name in names if name.startswith("id:")]
    wrong = next((number for number in numbers if not number.isdecimal()), None)
    if wrong is not None:
        raise SpecError(f"refusal token 'id:{wrong}': id:N takes the number of a token")
    pieces = [name for name in names if not name.startswith("id:")]
    return given_tokens(tokenizer, ids=[int(number) for number in numbers], pieces=pieces)


def preset_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> RefusalTokens:
    """A published list, for a tokenizer in which its ids mean what they meant there.

    Raises:
        SpecError: No preset has this name.
        VocabularyError: An id is another token here.
    """
    if name not in PRESETS:
        raise SpecError(f"unknown refusal preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    for token, piece in PRESETS[name]:
        here = piece_of(tokenizer, token) if 0 <= token < len(tokenizer) else None
        if here is None or here.strip() != piece:
            is_here = "does not exist" if here is None else f"is {here!r}"
            raise VocabularyError(
                f"preset {name!r}: token {token} is {piece!r} there and {is_here} in this "
                f"vocabulary; name the tokens as text instead, such as {piece!r}"
            )
    ids, _ = zip(*PRESETS[name], strict=True)
    return RefusalTokens(ids, tuple(piece_of(tokenizer, token) for token in ids), f"preset {name}")


def _known(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    if not 0 <= token < len(tokenizer):
        raise VocabularyError(f"refusal token {token}: this vocabulary has {len(tokenizer)} tokens")
    return int(token)
