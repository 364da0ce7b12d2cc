"""The tokenizer in a GGUF file: the same ids as the folder's, and a check that notices others."""

import gguf
import pytest
from transformers import AutoTokenizer

from mechprobe.cli import main
from mechprobe.errors import CheckpointError, VocabularyError
from mechprobe.models.gguf_tokenizer import check_vocabulary, load_gguf_tokenizer

TEXTS = [
    "the quick brown fox, it's 2024!",
    "  two  spaces\n\nand lines\t",
    "caf\u00e9 \u2014 na\u00efve \U0001f600",
    "we'll SEE</s>the quick<s>",
]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "phi"])
def test_same_ids_and_text_as_the_folder(name, tiny_folder, tiny_gguf):
    folder = AutoTokenizer.from_pretrained(tiny_folder(name))
    file = load_gguf_tokenizer(tiny_gguf(name))
    for text in TEXTS:
        ids = folder(text, add_special_tokens=False)["input_ids"]
        assert file(text, add_special_tokens=False)["input_ids"] == ids
        assert file.decode(ids) == folder.decode(ids)
    assert file.chat_template == folder.chat_template
    assert (file.bos_token_id, file.eos_token_id, file.pad_token_id) == (0, 1, 2)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_same_ids_in_llama_cpp(name, tiny_folder, tiny_gguf):
    vocabulary = pytest.importorskip("cyllama.llama.llama_cpp")
    vocabulary.disable_logging()
    folder = AutoTokenizer.from_pretrained(tiny_folder(name))
    model = vocabulary.LlamaModel(str(tiny_gguf(name)))
    for text in TEXTS:
        ids = folder(text, add_special_tokens=False)["input_ids"]
        assert list(model.get_vocab().tokenize(text, True, True)) == ids


def test_the_right_tokenizer_passes(tiny_folder, tiny_gguf):
    check_vocabulary(tiny_gguf(), AutoTokenizer.from_pretrained(tiny_folder("llama")))


def test_the_first_differing_id_is_named(tiny_gguf):
    other = load_gguf_tokenizer(tiny_gguf())
    vocabulary = other.get_vocab()
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    text = other.backend_tokenizer.to_str()
    swapped = text.replace(f'"{first}":40', '"X":40').replace(f'"{second}":41', f'"{first}":41')
    other._tokenizer = type(other.backend_tokenizer).from_str(
        swapped.replace('"X":40', f'"{second}":40')
    )
    with pytest.raises(VocabularyError, match=r"id 40 is .* and the tokenizer's is"):
        check_vocabulary(tiny_gguf(), other)


def test_a_larger_tokenizer(tiny_gguf):
    other = load_gguf_tokenizer(tiny_gguf())
    other.add_tokens([f"extra{i}" for i in range(3)])
    with pytest.raises(VocabularyError, match="holds 320 tokens and the tokenizer 323"):
        check_vocabulary(tiny_gguf(), other)


def test_another_end_token(tiny_gguf):
    other = load_gguf_tokenizer(tiny_gguf())
    other.eos_token = "<pad>"
    with pytest.raises(VocabularyError, match=r"EOS is id 1 \('</s>'\) and the tokenizer's is 2"):
        check_vocabulary(tiny_gguf(), other)


def _only_vocabulary(path, pre, model="gpt2", tokens=("a", "b", "ab"), merges=("a b",)):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_merges(list(merges))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_kinds_that_cannot_be_rebuilt(tmp_path):
    with pytest.raises(CheckpointError, match="pre-tokenizer 'viking' cannot be rebuilt"):
        load_gguf_tokenizer(_only_vocabulary(tmp_path / "m.gguf", "viking"))
    with pytest.raises(CheckpointError, match="'rwkv' vocabulary cannot be rebuilt"):
        load_gguf_tokenizer(_only_vocabulary(tmp_path / "n.gguf", "default", "rwkv"))


@pytest.mark.parametrize(
    ("tokens", "merge", "missing"),
    [
        (("a", "b", "xx"), "a b", "'ab'"),
        (("a", "xx", "ab"), "a b", "'b'"),
        (("xx", "b", "ab"), "a b", "'a'"),
        (("a", "b", "ab"), "ab", "''"),
    ],
)
def test_merges_of_another_vocabulary_are_named(tmp_path, tokens, merge, missing):
    file = _only_vocabulary(tmp_path / "m.gguf", "gpt-2", tokens=tokens, merges=(merge,))
    with pytest.raises(VocabularyError, match=rf"merge 0 .* needs the token {missing}") as error:
        load_gguf_tokenizer(file)
    assert "\n" not in str(error.value)


def test_an_overwritten_token_is_one_line_to_the_user(tiny_gguf, tmp_path, capsys):
    """A token that a merge needs, changed in the file; four bytes, so that nothing moves."""
    whole = tiny_gguf().read_bytes()
    merges = gguf.GGUFReader(tiny_gguf()).fields["tokenizer.ggml.merges"].contents()
    joined = (merge.replace(" ", "") for merge in merges)
    token = next(token for token in joined if len(token.encode()) == 4)
    damaged = tmp_path / "vocab.gguf"
    damaged.write_bytes(whole.replace(token.encode(), b"zqxj", 1))
    out = str(tmp_path / "out")
    assert main(["capture", "--model", str(damaged), "--prompt", "hi", "--out", out]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"mechprobe: {damaged}: merge ")
