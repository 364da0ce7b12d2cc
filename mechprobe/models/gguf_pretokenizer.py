"""How llama.cpp cuts text before it merges: the rule behind each `tokenizer.ggml.pre`.

A GGUF file names its pre-tokenizer; what the name means stands in llama.cpp (`llama-vocab.cpp`,
`unicode.cpp`), not in the file. The patterns here cut as llama.cpp does, also where that is not
what the model's own `tokenizer.json` says: in llama.cpp a category of letters is any letter
beyond ASCII, and nothing composes Unicode (NFC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule; each pattern cuts the pieces that the ones before it left, matches and gaps."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """Take a piece that is a token as that token, whatever its merges would give."""
    add_bos: bool = False
    """What holds where the file has no `tokenizer.ggml.add_bos_token`."""
    byte_level: bool = True
    """Bytes are written as GPT-2's characters; otherwise text is kept and spaces become U+2581."""


_ENDINGS: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_HAN_KANA: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_PUNCTUATED: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
)
_CASED: Final = r"[^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+"
"""A word as `tekken` and GPT-4o see it: capitals first, small letters last, beyond ASCII both."""
_CASED_REST: Final = r"[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*"
_BLOOM: Final = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DIGITS_FROM_RIGHT: Final = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"
"""Threes counted from the right; what precedes a number stays with its first digits."""
_LINES: Final = r"[^\n]+|[\n]+"
_DEEPSEEK_LETTERS: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_HAN: Final = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}&&\S]+"
"""llama.cpp matches a space beyond ASCII as `\\s` alone, never by its place in a range."""

_LLAMA3: Final = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2: Final = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_DEEPSEEK3: Final = (
    r"\p{N}{1,3}",
    _HAN_KANA,
    rf"{_PUNCTUATED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)

_GPT4O: Final = (
    rf"{_CASED}{_ENDINGS}?|{_CASED_REST}{_ENDINGS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TINY_AYA: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_ENDINGS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_BAILING: Final = (
    rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_SYMBOLS}"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
DEFAULT: Final = PreTokenizer(
    (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
)
"""What llama.cpp takes, with a warning, where a file names no pre-tokenizer."""

_SHARED: Final = (
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True)),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        PreTokenizer((_QWEN2,)),
    ),
    (
        "gpt-2 phi-2 gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling "
        "exaone4",
        PreTokenizer((_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(_DEEPSEEK3)),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_BLOOM,))),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    ("tiny_aya cohere2moe", PreTokenizer((_DIGITS_FROM_RIGHT, _TINY_AYA))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,))),
)
PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = {
    "default": DEFAULT,
    **{name: rule for names, rule in _SHARED for name in names.split()},
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
            r"\s+\z",
            _DEEPSEEK_HAN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}"),
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "qwen35": PreTokenizer(
        (
            rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    "tekken": PreTokenizer(
        (rf"{_CASED}|{_CASED_REST}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
        ignore_merges=True,
        add_bos=True,
    ),
    "seed-coder": PreTokenizer(
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",)),
    "jais-2": PreTokenizer(
        (
            rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+"
            r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)"
            r"|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "spark2_5": PreTokenizer(
        (
            r"\p{N}{1,3}",
            _HAN_KANA,
            rf"{_PUNCTUATED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "exaone-moe": PreTokenizer(
        (
            rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_ENDINGS}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"),
        ignore_merges=True,
    ),
    "gemma4": PreTokenizer((_LINES,), byte_level=False, add_bos=True),
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False),
}
"""By name, those that can be rebuilt with regular expressions; checked against llama.cpp's ids."""


_AS_WRITTEN: Final[dict[str, dict[tuple[bool, str | None], str]]] = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": {
        (True, None): "llama-bpe",
        (False, None): "dbrx",
    },
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": {(False, "NFC"): "qwen2"},
}
"""The pattern in a model's tokenizer.json; whether it ignores merges, its normalizer: the name."""


def pre_tokenizer_name(description: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer cuts text, None where it has no such name here.

    Args:
        description: A parsed `tokenizer.json`: a model's own, or one rebuilt from a GGUF file.
    """
    model = description.get("model", {})
    if model.get("type") != "BPE":
        return None
    normalizer = (description.get("normalizer") or {}).get("type")
    pre = description.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    whole = bool(steps[-1].get("use_regex", True))
    kind = (bool(model.get("ignore_merges")), normalizer)
    if whole and kind == (False, None):
        if len(steps) == 1:
            return "gpt-2"
        digits = len(steps) == 2 and steps[0].get("type") == "Digits"
        return "smollm" if digits and steps[0].get("individual_digits") else None
    patterns = tuple(str((step.get("pattern") or {}).get("Regex")) for step in steps[:-1])
    if whole or any(step.get("behavior") != "Isolated" for step in steps[:-1]):
        return None
    if len(patterns) == 1 and patterns[0] in _AS_WRITTEN:
        return _AS_WRITTEN[patterns[0]].get(kind)
    rebuilt = (
        name
        for name, rule in PRE_TOKENIZERS.items()
        if rule.byte_level and (rule.patterns, (rule.ignore_merges, None)) == (patterns, kind)
    )
    return next(rebuilt, None)
