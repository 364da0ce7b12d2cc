"""Which tokens end an answer: those that a checkpoint declares, and those known by their name.

llama.cpp stops at every token that it knows by name, whatever the file declares as its EOS; a file
whose EOS is another token than the one its template ends a turn with runs past the turn anywhere
else. So every engine here stops at the same set.

Source: the end-of-generation tokens of llama.cpp (`src/llama-vocab.cpp`, `special_eog_ids`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mechprobe.models.weights import read_json

_DEEPSEEK: Final = "<\uff5cend\u2581of\u2581sentence\uff5c>"
NAMES: Final = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    _DEEPSEEK, "[e~[",
})  # fmt: skip
"""Texts of tokens that end an answer, in any vocabulary that has them."""
FILE_BORDERS: Final = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens between files of code, by the key that may declare them: they end an answer too."""
NOT_AN_END: Final = (
    ("<|end|>", frozenset({"<|return|>", "<|call|>"})),
    ("<|end|>", frozenset({"<|return|>", "<|calls|>"})),
    ("<|end|>", frozenset({"<|call|>", "<|flush|>"})),
    ("<|end|>", frozenset({"<|calls|>", "<|flush|>"})),
    ("</s>", frozenset({"<|tool_response>"})),
    ("</s>", frozenset({"<|plamo:eos|>"})),
)
"""A name that ends no answer where all of these do: `<|end|>` ends a channel of gpt-oss."""
DEFAULT_EOS: Final = {
    "llama": 2, "gpt2": 11, "hybriddna": 11, "whitespace": 11, "t5": 1, "plamo2": 2,
}  # fmt: skip
"""What llama.cpp takes for the EOS of a file that declares none, by `tokenizer.ggml.model`."""

DEFAULT_BOS: Final = {
    "llama": 1, "gpt2": 11, "hybriddna": 11, "whitespace": 11, "plamo2": 1,
}  # fmt: skip
"""The same of the BOS; the pre-tokenizers of `NO_DEFAULT_BOS` have none."""
NO_DEFAULT_BOS: Final = frozenset({"chatglm-bpe", "glm4", "glm5"})

_DECLARED: Final = ("eot", "eom", *FILE_BORDERS)


def end_tokens(
    vocabulary: Mapping[str, int], declared: Mapping[str, int] | None = None
) -> set[int]:
    """Ids that end an answer.

    Args:
        vocabulary: Ids by the token's text.
        declared: Ids by name (`eos`, `eot`, `eom`, `fim_pad`, `fim_rep`, `fim_sep`), where a file
            declares them.
    """
    given = dict(declared or {})
    for key, names in FILE_BORDERS.items():
        if key not in given:
            given |= {name: vocabulary[name] for name in names if name in vocabulary}
    texts = {token: text for text, token in vocabulary.items()}
    found = {vocabulary[name] for name in NAMES & vocabulary.keys()} | set(given.values())
    ends = {texts.get(token, "") for token in found}
    for name, others in NOT_AN_END:
        if name in ends and others <= ends:
            found.discard(vocabulary[name])
    return found


def folder_end_tokens(folder: Path) -> set[int]:
    """Ids at which a folder's `config.json` or `generation_config.json` ends an answer."""
    files = [folder / name for name in ("config.json", "generation_config.json")]
    given = [read_json(file).get("eos_token_id") for file in files if file.is_file()]
    ids = [i for one in given for i in (one if isinstance(one, list) else [one])]
    return {i for i in ids if type(i) is int and i >= 0}


def gguf_end_tokens(metadata: Mapping[str, Any]) -> set[int]:
    """The ids at which llama.cpp stops, from a GGUF file's metadata."""
    tokens = metadata.get("tokenizer.ggml.tokens") or ()
    default = DEFAULT_EOS.get(str(metadata.get("tokenizer.ggml.model")))
    named = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", *_DECLARED)}
    inside = {key: i for key, i in named.items() if type(i) is int and 0 <= i < len(tokens)}
    if default is not None and default < len(tokens):
        inside.setdefault("eos", default)
    return end_tokens({text: token for token, text in enumerate(tokens)}, inside)
