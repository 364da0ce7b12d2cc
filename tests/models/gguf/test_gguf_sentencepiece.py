"""SentencePiece vocabularies in GGUF files give the ids that llama.cpp gives."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from mechprobe.errors import VocabularyError
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_vocabulary import check_vocabulary

SPACE = "\u2581"
PIECES = [SPACE, *"helowrdina.!?\n", "he", "ll", "lo", "hell", f"{SPACE}he", f"{SPACE}hell"]
PIECES += [f"{SPACE}hello", "or", "ld", f"{SPACE}w", f"{SPACE}wor", f"{SPACE}world", "aa", "aaaa"]
PIECES += ["\t\t", "\t\t\t\t", f"{SPACE}{SPACE}", "in", "ind", "[", "]", f"{SPACE}["]
TEXTS = [
    "hello world",
    " hello  world ",
    "<s>hello<e> hello<e>world",
    "[in] hello [in]<e>\n[",
    "<s> [in]hello",
    "h\u00e9llo \U0001f600 world?",
    "aaaaaaaaaaa aaa a",
    "   hello      world\n\n\n",
    "<unk>hello<unk>",
    "",
    " ",
    "\n",
    "wind in hello.",
    "\t \t\t\thello\t\t\t\t\t",
]


def _vocabulary(spaces=(), **options):
    """Unknown, BOS and EOS, the bytes, `spaces` as tokens of their own, then pieces by score."""
    tokens = ["<unk>", "<s>", "</s>", "<e>", *(f"<0x{i:02X}>" for i in range(256)), *spaces]
    kinds = [2, 3, 3, 3] + [6] * 256 + [4] * len(spaces)
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(PIECES))]
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": [*tokens, *PIECES],
        "ggml.token_type": kinds + [1] * len(PIECES),
        "ggml.scores": scores,
        **options,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ggml.add_bos_token": False},
        {"ggml.add_eos_token": True, "ggml.eos_token_id": 3},
        {"ggml.add_space_prefix": False},
    ],
)
def test_ids_are_llama_cpps(options, tmp_path, save_vocabulary, llama_cpp_ids):
    path = save_vocabulary(tmp_path / "m.gguf", _vocabulary(**options))
    tokenizer = load_gguf_tokenizer(path)
    for add in (True, False):
        expected = llama_cpp_ids(path, TEXTS, add_special=add)
        assert [tokenizer(text, add_special_tokens=add)["input_ids"] for text in TEXTS] == expected
    assert tokenizer.decode(tokenizer("hello w\u00e9!")["input_ids"], skip_special_tokens=True) == (
        "hello w\u00e9!"
    )


SPACES = ("   ", "    ", "\n\n")


def _source():
    """The model's own tokenizer, as Gemma's: runs of spaces are tokens, written as U+2581."""
    metadata = _vocabulary([text.replace(" ", SPACE) for text in SPACES])
    ids = {token: i for i, token in enumerate(metadata["ggml.tokens"])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in PIECES
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    backend = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.add_tokens([AddedToken(text.replace(" ", SPACE), normalized=True) for text in SPACES])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_user_defined_spaces_are_the_models_own(tmp_path, save_vocabulary, llama_cpp_ids):
    """llama.cpp's converter writes such a token with bare spaces, the tokenizer with U+2581."""
    metadata = _vocabulary(SPACES, **{"ggml.add_space_prefix": False, "ggml.add_bos_token": False})
    path = save_vocabulary(tmp_path / "m.gguf", metadata)
    source = _source()
    check_vocabulary(path, source)
    texts = ["hello   world", "a    a\n\nhello", "in        in\n\n\n", "  a  "]
    expected = llama_cpp_ids(path, texts)
    assert source(texts)["input_ids"] == expected
    assert load_gguf_tokenizer(path)(texts)["input_ids"] == expected
    assert load_gguf_tokenizer(path).decode(expected[0]) == "hello   world"


def test_other_tokens_with_other_spaces_are_refused(tmp_path, save_vocabulary):
    metadata = _vocabulary(SPACES)
    first = metadata["ggml.tokens"].index("   ")
    metadata["ggml.token_type"][first] = 1
    with pytest.raises(VocabularyError, match=rf"id {first} is '   ' and the tokenizer's is"):
        check_vocabulary(save_vocabulary(tmp_path / "m.gguf", metadata), _source())
