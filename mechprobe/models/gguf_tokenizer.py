"""The tokenizer inside a GGUF file, rebuilt so that it gives llama.cpp's ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import CheckpointError, VocabularyError
from mechprobe.models.end_tokens import DEFAULT_BOS, DEFAULT_EOS, NO_DEFAULT_BOS
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_pretokenizer import DEFAULT, PRE_TOKENIZERS, PreTokenizer
from mechprobe.models.gguf_vocabulary import (
    CONTROL,
    NORMAL,
    OWN_TOKENIZER,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges; each joins two tokens to a third, all of which the vocabulary must hold.

    Raises:
        VocabularyError: One does not: the vocabulary is damaged, or another model's.
    """
    known, merges = set(vocabulary.tokens), []
    for number, merge in enumerate(vocabulary.merges):
        cut = merge.find(" ", 1)
        left, right = (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge, "")
        missing = [token for token in (left, right, left + right) if token not in known]
        if missing:
            raise VocabularyError(
                f"{vocabulary.path}: merge {number} ({merge!r}) needs the token {missing[0]!r}, "
                "which the file lacks: its vocabulary is damaged or another model's; convert the "
                f"model again, or {OWN_TOKENIZER}"
            )
        merges.append((left, right))
    return merges


def _pieces(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of a SentencePiece vocabulary's tokens; a byte that longer tokens hold is its character.

    llama.cpp joins characters that are no tokens; here a merge needs both halves. Gemma's tabs
    are such: `<0x09>` and tokens of two tabs and more, none of one.
    """
    normal = {t for t, k in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if k == NORMAL}
    held = {character for token in normal for character in token} - set(vocabulary.tokens)
    plain = {f"<0x{ord(character):02X}>": character for character in held if character.isascii()}
    return {plain.get(token, token): i for i, token in enumerate(vocabulary.tokens)}


def _merges_by_score(ids: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges of a SentencePiece vocabulary: any two tokens that join to a third, best score first.

    SentencePiece joins whatever neighbours give the token of the highest score (Kudo & Richardson
    2018); the same order comes of a list of all such pairs.
    """
    pairs = [
        (token[:cut], token[cut:], i)
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    pairs.sort(key=lambda pair: -scores[pair[2]])
    return [(left, right) for left, right, _ in pairs]


def _rule(vocabulary: Vocabulary) -> PreTokenizer:
    """How text is cut before merging.

    Raises:
        CheckpointError: llama.cpp knows no such rule, or it is no list of regular expressions.
    """
    name = "gemma4" if vocabulary.model == "gemma4" else vocabulary.pre
    if name is None:
        return DEFAULT
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{vocabulary.path}: pre-tokenizer {name!r} cannot be rebuilt; {OWN_TOKENIZER}"
        )
    return PRE_TOKENIZERS[name]


def _sentencepiece_decoder(*, strip: bool) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _bpe(vocabulary: Vocabulary) -> Any:
    """A BPE tokenizer with a list of merges and a rule that cuts text before them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule = _rule(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary.tokens)},
            merges=_merges(vocabulary),
            ignore_merges=rule.ignore_merges,
            byte_fallback=not rule.byte_level,
        )
    )
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns
    ]
    if rule.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.decoder = _sentencepiece_decoder(strip=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Any:
    """A SentencePiece BPE tokenizer; llama.cpp begins the text after each special token anew."""
    from tokenizers import Tokenizer, models, normalizers

    unknown = vocabulary.special.get("unk")
    pieces = _pieces(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=_merges_by_score(pieces, vocabulary.scores),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = vocabulary.add_space_prefix is not False
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = _sentencepiece_decoder(strip=prefix)
    return tokenizer


READING: Final = 2
"""Raised when the same file gives a tokenizer of other ids than before."""
_BUILD: Final[dict[str, Callable[[Vocabulary], Any]]] = {
    "gpt2": _bpe,
    "gemma4": _bpe,
    "llama": _sentencepiece,
}
"""By `tokenizer.ggml.model`."""
_STRIPS_NOTHING: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Phi-3's tokens that leave the spaces after them alone."""


def _adds(vocabulary: Vocabulary) -> tuple[bool, bool]:
    """Whether llama.cpp puts BOS before a text, and EOS behind it."""
    bos = vocabulary.add_bos
    if bos is None:
        bos = True if vocabulary.model == "llama" else _rule(vocabulary).add_bos
    return bos or vocabulary.model == "gemma4", bool(vocabulary.add_eos)


def _defaults(vocabulary: Vocabulary) -> dict[str, int]:
    """What llama.cpp puts at the ends where the file names no ids."""
    tables = {"bos": DEFAULT_BOS, "eos": DEFAULT_EOS}
    if vocabulary.pre in NO_DEFAULT_BOS:
        del tables["bos"]
    found = {name: table.get(vocabulary.model, -1) for name, table in tables.items()}
    return {name: i for name, i in found.items() if 0 <= i < len(vocabulary.tokens)}


def _add_tokens_at_the_ends(backend: Any, vocabulary: Vocabulary) -> None:
    from tokenizers.processors import TemplateProcessing

    ids = _defaults(vocabulary) | vocabulary.special
    names = [
        name
        for name, added in zip(("bos", "eos"), _adds(vocabulary), strict=True)
        if added and name in ids
    ]
    if not names:
        return
    token = {name: vocabulary.tokens[ids[name]] for name in names}
    before, behind = token.get("bos", ""), token.get("eos", "")
    backend.post_processor = TemplateProcessing(
        single=[part for part in (before, "$A", behind) if part],
        pair=[part for part in (before, "$A", "$B", behind) if part],
        special_tokens=[(token[name], ids[name]) for name in names],
    )


def _found_first(vocabulary: Vocabulary, kinds: Sequence[int], *, special: bool) -> list[Any]:
    """The tokens of these kinds, which are looked for in a text before anything else."""
    from tokenizers import AddedToken

    return [
        AddedToken(
            token,
            normalized=False,
            special=special,
            rstrip=vocabulary.strips_right and token not in _STRIPS_NOTHING,
        )
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind in kinds
    ]


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer stored in a GGUF file, with its chat template.

    Args:
        path: A `.gguf` file whose vocabulary is a byte-level BPE with a pre-tokenizer that is
            known by name, a SentencePiece BPE, or Gemma 4's.

    Raises:
        CheckpointError: No vocabulary, a damaged one, or a kind that cannot be rebuilt so that
            it gives llama.cpp's ids.
        VocabularyError: Its merges need tokens that it lacks, or a token is no Unicode.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = read_vocabulary(read_gguf(path))
    if vocabulary.model not in _BUILD:
        raise CheckpointError(
            f"{path}: its {vocabulary.model!r} vocabulary cannot be rebuilt; {OWN_TOKENIZER}"
        )
    for i, token in enumerate(vocabulary.tokens):
        if not token.isascii() and any("\ud800" <= character <= "\udfff" for character in token):
            raise VocabularyError(
                f"{path}: token {i} ({token!r}) is no UTF-8 and cannot be rebuilt; {OWN_TOKENIZER}"
            )
    backend = _BUILD[vocabulary.model](vocabulary)
    backend.add_special_tokens(_found_first(vocabulary, (CONTROL, UNKNOWN), special=True))
    backend.add_tokens(_found_first(vocabulary, (USER_DEFINED,), special=False))
    _add_tokens_at_the_ends(backend, vocabulary)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=vocabulary.chat_template,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": vocabulary.tokens[i] for name, i in vocabulary.special.items()},
    )
