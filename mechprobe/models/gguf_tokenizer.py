"""The tokenizer inside a GGUF file: build it, or check that it is the one a model is read with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import CheckpointError, VocabularyError
from mechprobe.models.gguf_file import GgufFile, read_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEX: Final = {
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "dbrx": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
"""How text is cut before merging, by `tokenizer.ggml.pre`; as in the models' own tokenizer.json."""
_GPT2: Final = frozenset({"gpt-2", "phi-2", "olmo"})
_COMPOSED: Final = frozenset({"qwen2"})
"""Those whose tokenizer.json composes Unicode first (NFC); llama.cpp does not."""
_DIGITS: Final = frozenset({"smollm", "starcoder", "refact"})
_SPECIAL: Final = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{file.path}: holds no vocabulary; convert the model again")
    return list(tokens)


def _merges(file: GgufFile, tokens: list[str]) -> list[tuple[str, str]]:
    """The merges; each joins two tokens to a third, all of which the vocabulary must hold.

    Raises:
        VocabularyError: One does not: the vocabulary is damaged, or another model's.
    """
    known, found = set(tokens), []
    for number, merge in enumerate(file.metadata.get("tokenizer.ggml.merges", [])):
        left, _, right = merge.partition(" ")
        missing = [token for token in (left, right, left + right) if token not in known]
        if missing:
            raise VocabularyError(
                f"{file.path}: merge {number} ({merge!r}) needs the token {missing[0]!r}, which "
                "the file lacks: its vocabulary is damaged or another model's; convert the model "
                "again, or pass the model's own tokenizer (--tokenizer FOLDER_OR_ID)"
            )
        found.append((left, right))
    return found


def pre_tokenizer_name(description: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer cuts text, None where it has no such name here.

    Args:
        description: A parsed `tokenizer.json`.
    """
    if description.get("model", {}).get("type") != "BPE":
        return None
    normalizer = (description.get("normalizer") or {}).get("type")
    pre = description.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    whole = bool(steps[-1].get("use_regex", True))
    if len(steps) == 1 and whole and normalizer is None:
        return "gpt-2"
    if len(steps) != 2:
        return None
    first = steps[0]
    if first.get("type") == "Digits" and whole and normalizer is None:
        return "smollm" if first.get("individual_digits") else None
    pattern = (first.get("pattern") or {}).get("Regex")
    name = next((n for n, regex in _REGEX.items() if regex == pattern), None)
    expected = "NFC" if name in _COMPOSED else None
    return name if normalizer == expected and not whole else None


def _pre_tokenizer(path: Path, pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if pre in _REGEX:
        split = pre_tokenizers.Split(Regex(_REGEX[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([split, byte_level])
    raise CheckpointError(
        f"{path}: pre-tokenizer {pre!r} cannot be rebuilt; pass the model's own tokenizer "
        "(--tokenizer FOLDER_OR_ID)"
    )


def _byte_level(file: GgufFile) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` from the file's tokens and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens = _tokens(file)
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(file, tokens)))
    pre = str(file.metadata.get("tokenizer.ggml.pre", "gpt-2"))
    tokenizer.pre_tokenizer = _pre_tokenizer(file.path, pre)
    if pre in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer stored in a GGUF file, with its chat template.

    Args:
        path: A `.gguf` file. Byte-level BPE vocabularies are rebuilt here; SentencePiece ones by
            transformers' own GGUF reader.

    Raises:
        CheckpointError: No vocabulary, or a kind that cannot be rebuilt.
        VocabularyError: Its merges need tokens that it lacks.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = read_gguf(path)
    if file.metadata.get("tokenizer.ggml.model") != "gpt2":
        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name
            )
        except (ValueError, KeyError, OSError, NotImplementedError) as error:
            raise CheckpointError(
                f"{path}: its {file.metadata.get('tokenizer.ggml.model')!r} vocabulary cannot be "
                "rebuilt; pass the model's own tokenizer (--tokenizer FOLDER_OR_ID)"
            ) from error
        return found
    tokens = _tokens(file)
    backend = _byte_level(file)
    ids = {
        name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()
    }
    special = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    if file.metadata.get("tokenizer.ggml.add_bos_token") and ids["bos"] is not None:
        from tokenizers.processors import TemplateProcessing

        bos = special["bos_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, ids["bos"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def check_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that ids mean the same to a GGUF file and to the tokenizer that renders prompts.

    Padding rows that a converter appends (unused tokens past the tokenizer's end) may differ.

    Raises:
        VocabularyError: A token or a special token differs; the message names the first id.
        CheckpointError: The file is broken or holds no vocabulary.
    """
    file = read_gguf(path)
    tokens = _tokens(file)
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    size = len(tokenizer)
    if size > len(tokens):
        raise VocabularyError(
            f"{path}: holds {len(tokens)} tokens and the tokenizer {size}; it belongs to another "
            "model"
        )
    expected = tokenizer.convert_ids_to_tokens(list(range(size)))
    for i, (found, wanted) in enumerate(zip(tokens, expected, strict=False)):
        if found != wanted and not (wanted is None and kinds[i] == _UNUSED):
            raise VocabularyError(
                f"{path}: id {i} is {found!r} and the tokenizer's is {wanted!r}; "
                "use the tokenizer of the model that this file was made from"
            )
    for name in ("bos", "eos"):
        found_id = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        wanted_id = getattr(tokenizer, f"{name}_token_id")
        if found_id is not None and wanted_id is not None and found_id != wanted_id:
            raise VocabularyError(
                f"{path}: its {name.upper()} is id {found_id} ({tokens[found_id]!r}) and the "
                f"tokenizer's is {wanted_id} ({tokens[wanted_id]!r})"
            )
