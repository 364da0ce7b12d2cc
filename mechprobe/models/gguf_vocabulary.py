"""The vocabulary in a GGUF file: read, checked, and compared with a tokenizer's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import CheckpointError, VocabularyError
from mechprobe.models.end_tokens import FILE_BORDERS, NAMES, NOT_AN_END
from mechprobe.models.gguf_file import GgufFile, read_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6
OWN_TOKENIZER: Final = "pass the model's own tokenizer (--tokenizer FOLDER_OR_ID)"
SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's character for a space."""

_INSIDE_FILES: Final = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<|code_prefix|>", "<|prefix|>", "<PRE>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<|code_suffix|>", "<|suffix|>", "<SUF>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<|code_middle|>", "<|middle|>", "<MID>",
    "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>",
    "\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>",
})  # fmt: skip
"""Tokens for filling in code, which llama.cpp knows by name."""
_KNOWN_BY_NAME: Final = frozenset(
    {*NAMES, *itertools.chain(*FILE_BORDERS.values()), *_INSIDE_FILES}
)
_SPECIAL: Final = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_SENTENCEPIECE_IDS: Final = {"bos": 1, "eos": 2, "unk": 0}
"""What llama.cpp takes where a SentencePiece vocabulary names no ids."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a file says about its tokenizer, with llama.cpp's defaults where it says nothing."""

    path: Path
    model: str
    """`gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `gemma4`, …"""
    pre: str | None
    """The name of the pre-tokenizer; None where the file has none."""
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: dict[str, int]
    """Ids of `bos`, `eos`, `pad` and `unk`, those that there are."""
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_template: str | dict[str, str] | None
    """Its text; by name where there are several, the first of them `default`."""
    strips_right: bool
    """Spaces after a special token belong to it: llama.cpp knows Phi-3 by `general.name`."""


def _list(file: GgufFile, key: str, *kinds: type) -> list[Any]:
    """A list of the metadata, empty where the key is missing.

    Raises:
        CheckpointError: It is no list, or an element is of another type.
    """
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if values is None:
        return []
    if not isinstance(values, list) or any(type(value) not in kinds for value in values):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.{key} is no list of {kinds[0].__name__}; convert the "
            "model again"
        )
    return values


def _value(file: GgufFile, key: str, kind: type) -> Any:
    value = file.metadata.get(key)
    if value is not None and type(value) is not kind:
        raise CheckpointError(
            f"{file.path}: {key} is {value!r:.40} and must be of type {kind.__name__}; convert the "
            "model again"
        )
    return value


def _chat_template(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template, or several of them by name (`tokenizer.chat_template.NAME`).

    Raises:
        CheckpointError: One is no text.
    """
    own: str | None = _value(file, "tokenizer.chat_template", str)
    prefix = "tokenizer.chat_template."
    keys = [key for key in file.metadata if key.startswith(prefix)]
    named = {key.removeprefix(prefix): _value(file, key, str) for key in keys}
    if not named:
        return own
    return named if own is None else {"default": own, **named}


def _kinds(tokens: Sequence[str], kinds: Sequence[int]) -> tuple[int, ...]:
    """The kinds of the tokens, as llama.cpp has them: it knows some tokens by their text."""
    held = set(tokens)
    normal = {name for name, others in NOT_AN_END if name == "</s>" and others <= held}
    return tuple(
        NORMAL
        if token in normal
        else CONTROL
        if token in _KNOWN_BY_NAME and kind not in (UNKNOWN, USER_DEFINED)
        else kind
        for token, kind in zip(tokens, kinds, strict=False)
    )


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Read what a file says about its tokenizer.

    Raises:
        CheckpointError: There is no vocabulary, or a value has the wrong type or length.
        VocabularyError: A token occurs twice, or a special id is none of the vocabulary.
    """
    path = file.path
    tokens = _list(file, "tokens", str)
    if not tokens:
        raise CheckpointError(f"{path}: holds no vocabulary; convert the model again")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # as llama.cpp does
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if ids.setdefault(token, i) != i:
            raise VocabularyError(
                f"{path}: ids {ids[token]} and {i} are both {token!r}; convert the model again"
            )
    kinds = _list(file, "token_type", int) or [NORMAL] * len(tokens)
    scores = _list(file, "scores", float, int) or [0.0] * len(tokens)
    for name, values in (("token_type", kinds), ("scores", scores)):
        if len(values) < len(tokens):
            raise CheckpointError(
                f"{path}: tokenizer.ggml.{name} has {len(values)} entries for {len(tokens)} "
                "tokens; convert the model again"
            )
    model = str(_value(file, "tokenizer.ggml.model", str))
    special = dict(_SENTENCEPIECE_IDS) if model == "llama" else {}
    for name, key in _SPECIAL.items():
        i = _value(file, f"tokenizer.ggml.{key}_token_id", int)
        if i is not None and not 0 <= i < len(tokens):
            raise VocabularyError(
                f"{path}: its {name.upper()} is id {i} and there are {len(tokens)} tokens"
            )
        if i is not None:
            special[name] = i
    return Vocabulary(
        path=path,
        model=model,
        pre=_value(file, "tokenizer.ggml.pre", str) or None,
        tokens=tuple(tokens),
        kinds=_kinds(tokens, kinds),
        merges=tuple(_list(file, "merges", str)),
        scores=tuple(scores[: len(tokens)]),
        special={name: i for name, i in special.items() if i < len(tokens)},
        add_bos=_value(file, "tokenizer.ggml.add_bos_token", bool),
        add_eos=_value(file, "tokenizer.ggml.add_eos_token", bool),
        add_space_prefix=_value(file, "tokenizer.ggml.add_space_prefix", bool),
        chat_template=_chat_template(file),
        strips_right=any(
            name in str(file.metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3")
        ),
    )


def vocabulary_notes(file: GgufFile) -> tuple[str, ...]:
    """What is odd about a file's tokenizer and read all the same, in words."""
    if file.metadata.get("tokenizer.ggml.model") != "gpt2":
        return ()
    if file.metadata.get("tokenizer.ggml.pre") in (None, "", "default"):
        return (
            "the file names no pre-tokenizer (tokenizer.ggml.pre): text is cut by llama.cpp's "
            "default, which is hardly the model's own; convert the model again",
        )
    return ()


def _same(token: str, kind: int, wanted: str | None) -> bool:
    """Whether a file's token is the tokenizer's, written in llama.cpp's way.

    llama.cpp looks for user-defined tokens before it turns spaces into SentencePiece's character,
    so its converter writes them with bare spaces. A byte may be `<0x09>` in `tokenizer.model` and
    the character itself in `tokenizer.json` (Gemma's tab).
    """
    if wanted is None:
        return kind == UNUSED
    if kind == USER_DEFINED:
        return token == wanted.replace(SPACE, " ")
    return kind == BYTE and len(wanted) == 1 and token == f"<0x{ord(wanted):02X}>"


def require_same_tokens(vocabulary: Vocabulary, expected: Mapping[int, str | None]) -> None:
    """Make sure that ids mean the same to a GGUF file and to a tokenizer; see `check_vocabulary`.

    Args:
        vocabulary: Of the file.
        expected: The tokenizer's tokens by id, None where it has none.

    Raises:
        VocabularyError: A token differs; the message names the first id.
    """
    path, tokens = vocabulary.path, vocabulary.tokens
    if (size := max(expected, default=-1) + 1) > len(tokens):
        raise VocabularyError(
            f"{path}: holds {len(tokens)} tokens and the tokenizer {size}; it belongs to another "
            "model"
        )
    for i, wanted in expected.items():
        if tokens[i] == wanted or _same(tokens[i], vocabulary.kinds[i], wanted):
            continue
        raise VocabularyError(
            f"{path}: id {i} is {tokens[i]!r} and the tokenizer's is {wanted!r}; "
            "use the tokenizer of the model that this file was made from"
        )


def check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Make sure that ids mean the same to a GGUF file and to the tokenizer that renders prompts.

    Padding rows that a converter appends (unused tokens past the tokenizer's end) may differ, and
    so may the way in which a token is written; see `_same`. Another EOS changes no prompt.

    Returns:
        What differs and is read all the same, in words.

    Raises:
        VocabularyError: A token or the BOS differs; the message names the first id.
        CheckpointError: The file is broken or holds no vocabulary.
    """
    vocabulary = read_vocabulary(read_gguf(path))
    tokens = vocabulary.tokens
    expected = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    require_same_tokens(vocabulary, dict(enumerate(expected)))
    differing = {}
    for name in ("bos", "eos"):
        token_id = vocabulary.special.get(name)
        wanted_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None and wanted_id is not None and token_id != wanted_id:
            differing[name] = (
                f"its {name.upper()} is id {token_id} ({tokens[token_id]!r}) and the "
                f"tokenizer's is {wanted_id} ({tokens[wanted_id]!r})"
            )
    if "bos" in differing:
        raise VocabularyError(f"{path}: {differing['bos']}")
    # Prompts are ids already; where an answer ends is asked of the file.
    return tuple(f"{said}; answers end where the file says" for said in differing.values())
