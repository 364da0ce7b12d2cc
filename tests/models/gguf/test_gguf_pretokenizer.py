"""Every rule by which text is cut before merging, against llama.cpp's own."""

import itertools

import pytest
from tokenizers import pre_tokenizers

from mechprobe.models.gguf_pretokenizer import PRE_TOKENIZERS
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer

SPACE = "\u0120"
JOINED = [*"astvlSTL019'.!$+/(", SPACE, "\u010a", "\u010d", "\u00c3", "\u00a9", "\u00cc", "\u0123"]
"""Letters, digits, marks and spaces; the last four are bytes of é and of a combining accent."""
TEXTS = [
    "it's At LAST's 1 12 123 1234 12345v67 a1.9 t'LL 'TTa",
    "a  s   t\n\nv\r\n l \n\n\n s \t T..!\n.a(9)/\n$+ +a",
    "\u00e9a\u00e9 A\u00c9\u00e9 a\u0301s\u0301 \u0301 1\u0301 .\u0301",
    "VaLaS LaTS TsT's ssT\u00c9s 's'T l'v 0190/a //a/\n/a",
    "\u00a0a \u3000 \u4e00\u4e01a\u3042\u30a2 \u0436\u0416\u0436",
    "\u0660\u0661\u00b2\u00bd 1\u0662 \u2019s",
    '<|im|> {a}_[t]`~^| #@%&*=\\" ;:?<> -_- \u2026\u3002\u060ca',
    "   leading, trailing   ",
    " ",
    "\n",
    " \n \n",
]


def _vocabulary(pre):
    """One in which any two of `JOINED` merge where they stand in one piece, so that cuts show."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.product(JOINED, repeat=2))
    whole = f"{SPACE}LaTS"  # no merge leads there
    tokens = [*alphabet, *(left + right for left, right in pairs), whole, "<s>"]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "ggml.merges": [f"{left} {right}" for left, right in pairs],
        "ggml.bos_token_id": len(tokens) - 1,
        "ggml.eos_token_id": len(tokens) - 1,
    }


_BYTE_LEVEL = [name for name, rule in PRE_TOKENIZERS.items() if rule.byte_level]
_ONE_EACH = {rule: name for name, rule in reversed(PRE_TOKENIZERS.items())}.values()


@pytest.mark.parametrize(
    "pre",
    [n if n in _ONE_EACH else pytest.param(n, marks=pytest.mark.verify) for n in _BYTE_LEVEL],
)
def test_text_is_cut_as_llama_cpp_cuts_it(pre, tmp_path, save_vocabulary, llama_cpp_ids):
    path = save_vocabulary(tmp_path / "m.gguf", _vocabulary(pre))
    assert load_gguf_tokenizer(path)(TEXTS)["input_ids"] == llama_cpp_ids(path, TEXTS)


@pytest.mark.parametrize(("model", "pre"), [("gemma4", "gemma4"), ("gpt2", "sarvam-moe")])
def test_text_that_is_not_written_in_bytes(model, pre, tmp_path, save_vocabulary, llama_cpp_ids):
    """Gemma 4's kind: spaces become U+2581, words merge across them, bytes are the last resort."""
    letters = ["\u2581", *"abc.", "\n"]
    pairs = [pair for pair in itertools.product(letters, repeat=2) if pair.count("\n") != 1]
    tokens = [*(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in pairs), "<bos>"]
    metadata = {
        "ggml.model": model,
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": [6] * 256 + [1] * (len(tokens) - 257) + [3],
        "ggml.merges": [f"{left} {right}" for left, right in pairs],
        "ggml.bos_token_id": len(tokens) - 1,
        "ggml.eos_token_id": len(tokens) - 1,
        "ggml.add_bos_token": model == "gemma4",
    }
    path = save_vocabulary(tmp_path / "m.gguf", metadata)
    texts = ["a b  c.\n\n\nab", " \u00e9a<bos>b c", "\n", "aaa   \n \n", "bad\U0001f600."]
    tokenizer = load_gguf_tokenizer(path)
    expected = llama_cpp_ids(path, texts)
    assert tokenizer(texts)["input_ids"] == expected
    plain = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert plain == [text.replace("<bos>", "") for text in texts]
