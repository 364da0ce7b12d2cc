"""The tokenizer in a GGUF file: the same ids as the folder's, and a check that notices others."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.cli import main
from mechprobe.errors import CheckpointError, CheckpointWarning, VocabularyError
from mechprobe.generation import open_engine
from mechprobe.generation.graph import stop_ids
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_vocabulary import check_vocabulary
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode

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


def test_another_end_token_is_read_and_said(tiny_folder, tiny_gguf, tmp_path):
    """Prompts are ids either way; the answers of a file end where the file says."""
    content, key = bytearray(tiny_gguf().read_bytes()), b"tokenizer.ggml.eos_token_id"
    content[content.index(key) + len(key) + 4] = 7
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    for kernel in ("native", "dense"):
        with pytest.warns(CheckpointWarning, match=r"EOS is id 7 .* and the tokenizer's is 1"):
            found = load_checkpoint(path, kernel=kernel, tokenizer=tiny_folder())
        with open_engine(found) as engine:
            assert engine.generate([[5, 6, 9]], max_new_tokens=2)
        assert 7 in stop_ids(found)


def test_another_begin_token(tiny_gguf):
    other = load_gguf_tokenizer(tiny_gguf())
    other.bos_token = "<pad>"
    with pytest.raises(VocabularyError, match=r"BOS is id 0 \('<s>'\) and the tokenizer's is 2"):
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
    for pre in ("kimi-k2", "superbpe", "another"):
        with pytest.raises(CheckpointError, match=f"pre-tokenizer '{pre}' cannot be rebuilt"):
            load_gguf_tokenizer(_only_vocabulary(tmp_path / f"{pre}.gguf", pre))
    for model in ("rwkv", "bert", "t5", "plamo2", "whitespace"):
        with pytest.raises(CheckpointError, match=f"'{model}' vocabulary cannot be rebuilt"):
            load_gguf_tokenizer(_only_vocabulary(tmp_path / f"{model}.gguf", "default", model))


def _metadata(**changes):
    tokens = [*map(chr, range(33, 127)), "\u0120", "ab", "<s>"]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": "gpt-2",
        "ggml.tokens": tokens,
        "ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "ggml.merges": ["a b"],
        "ggml.eos_token_id": len(tokens) - 1,
    } | changes


def test_a_file_without_pre_tokenizer_is_cut_as_llama_cpp_cuts_it(
    tmp_path, save_vocabulary, llama_cpp_ids
):
    """Its default, which no model has: it cuts " $" and "12345" where GPT-2's rule does not."""
    metadata = _metadata(**{"ggml.tokens": ["\u0120$", "34", *_metadata()["ggml.tokens"]]})
    metadata["ggml.token_type"] = [1] * (len(metadata["ggml.tokens"]) - 1) + [3]
    metadata["ggml.merges"] = ["\u0120 $", "3 4", "a b"]
    named = save_vocabulary(tmp_path / "gpt2.gguf", metadata)
    del metadata["ggml.pre"]
    path = save_vocabulary(tmp_path / "m.gguf", metadata)
    texts = ["a $", "12345", "a b ab"]
    ids = llama_cpp_ids(path, texts)
    assert load_gguf_tokenizer(path)(texts)["input_ids"] == ids
    other = load_gguf_tokenizer(named)(texts)["input_ids"]
    assert [a == b for a, b in zip(ids, other, strict=True)] == [False, False, True]
    checkpoint = load_checkpoint(str(path), kernel="native")
    assert "names no pre-tokenizer (tokenizer.ggml.pre)" in checkpoint.quant.notes[-1]
    assert not any(
        "pre-tokenizer" in n for n in load_checkpoint(str(named), kernel="native").quant.notes
    )


@pytest.mark.parametrize("ends", [("bos",), ("eos",), ("bos", "eos")])
def test_ends_that_are_added_and_not_named(ends, tmp_path, save_vocabulary, llama_cpp_ids):
    """llama.cpp puts id 11 there in a vocabulary of GPT-2's kind."""
    metadata = _metadata()
    metadata["ggml.tokens"] += [f"more{i}" for i in range(12)]
    metadata["ggml.token_type"] += [1] * 12
    for name in ("bos", "eos"):
        metadata.pop(f"ggml.{name}_token_id", None)
        metadata[f"ggml.add_{name}_token"] = name in ends
    path = save_vocabulary(tmp_path / "m.gguf", metadata)
    ids = llama_cpp_ids(path, ["a b", "ab"])
    assert [row[0] == 11 for row in ids] == ["bos" in ends] * 2
    assert load_gguf_tokenizer(path)(["a b", "ab"])["input_ids"] == ids


@pytest.mark.parametrize("others", [(), ("<|tool_response>",)])
def test_tokens_that_llama_cpp_knows_by_name(others, tmp_path, save_vocabulary, llama_cpp_ids):
    """Read as one token though the file calls them normal; "</s>" is normal in Gemma 4."""
    named = ["<|im_end|>", "<fim_prefix>", "</s>", "<|file_sep|>", "<|im_start|>", *others]
    metadata = _metadata()
    metadata["ggml.tokens"] += named
    metadata["ggml.token_type"] += [1] * len(named)
    path = save_vocabulary(tmp_path / "m.gguf", metadata)
    texts = [f"a{name}b" for name in named]
    ids = llama_cpp_ids(path, texts)
    assert load_gguf_tokenizer(path)(texts)["input_ids"] == ids
    assert [len(row) == 3 for row in ids][:5] == [True, True, not others, True, False]


def test_spaces_after_phi3s_special_tokens(tmp_path, save_vocabulary, llama_cpp_ids):
    """llama.cpp knows the model by its name alone, and gives them to the token."""
    metadata = _metadata()
    metadata["ggml.tokens"] += ["<|user|>", "<|endoftext|>", "</s>", "<unk>"]
    metadata["ggml.token_type"] += [3, 3, 3, 2]
    texts = ["<|user|> a", "<|user|>\n\n a b", "<|endoftext|> a", "<s> a", "</s>  a"]
    found = []
    for name in ("another", "Phi-3-mini"):
        path = save_vocabulary(tmp_path / f"{name}.gguf", metadata, name=name)
        found.append(llama_cpp_ids(path, texts))
        assert load_gguf_tokenizer(path)(texts)["input_ids"] == found[-1]
    same = [a == b for a, b in zip(*found, strict=True)]
    assert same == [False, False, True, True, False]


@pytest.fixture
def adding(tiny_folder, tmp_path):
    """`adding(tokens)`: a folder whose tokenizer puts these tokens around a text."""

    def make(tokens):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder("llama"))
        parts = [t for t in ("<s>", "<pad>", "$A", "</s>") if t in tokens or t == "$A"]
        ids = tokenizer.convert_tokens_to_ids(list(tokens))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=parts, pair=[*parts, "$B"], special_tokens=list(zip(tokens, ids, strict=True))
        )
        folder = tmp_path / "m"
        shutil.copytree(tiny_folder("llama"), folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("tokens", [("<s>",), ("</s>",), ("<s>", "</s>"), ()])
def test_a_written_file_adds_what_the_source_adds(tokens, adding, tmp_path, llama_cpp_ids):
    folder = adding(tokens)
    source = AutoTokenizer.from_pretrained(folder)
    path = write_f16_gguf(folder, tmp_path / "m.gguf")
    expected = source(TEXTS)["input_ids"]
    assert [row[0] == 0 for row in expected] == ["<s>" in tokens] * len(TEXTS)
    assert llama_cpp_ids(path, TEXTS) == expected
    assert load_gguf_tokenizer(path)(TEXTS)["input_ids"] == expected


def test_a_tokenizer_that_adds_another_token_is_not_written(adding, tmp_path):
    folder = adding(("<s>", "<pad>"))
    with pytest.raises(CheckpointError, match=r"reads 'a' as \['<s>', '<pad>', 'a'\]; a GGUF file"):
        write_f16_gguf(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_one_bos_on_every_way_to_the_model(adding, tmp_path):
    """As ids, as a conversation, as a text: llama.cpp reads the BOS that `encode` wrote, once."""
    xllamacpp = pytest.importorskip("xllamacpp")
    folder = adding(("<s>",))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = write_f16_gguf(folder, tmp_path / "m.gguf")
    text = "the quick brown fox"
    (ids,) = encode(tokenizer, [text])
    assert ids == (0, *tokenizer(text, add_special_tokens=False)["input_ids"])
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity, params.n_parallel = str(path), -1, 1
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    message = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    answers = [
        server.handle_chat_completions(message),
        server.handle_completions({"prompt": list(ids), "max_tokens": 1}),
        server.handle_completions({"prompt": text, "max_tokens": 1}),
    ]
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [len(ids)] * 3
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
    with LlamaCppEngine(path, tokenizer) as engine:
        assert np.abs(engine.next_token_logprobs([ids])[0] - expected).max() < 0.02


def test_a_template_that_llama_cpp_cannot_parse_does_not_matter(tmp_path, save_vocabulary):
    """Mistral Nemo's: its `selectattr` names a test that llama.cpp's Jinja lacks."""
    template = "{{ messages | selectattr('role', 'no_such_test') | list }}"
    path = save_vocabulary(tmp_path / "m.gguf", _metadata(chat_template=template))
    with LlamaCppEngine(path, load_gguf_tokenizer(path)) as engine:
        (answer,) = engine.generate([[1, 2]], max_new_tokens=3)
    assert answer.new_tokens <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.tokens": [1, 2, 3]}, "tokenizer.ggml.tokens is no list of str"),
        ({"ggml.token_type": [1, 1]}, "token_type has 2 entries for 97 tokens"),
        ({"ggml.token_type": ["a"] * 97}, "token_type is no list of int"),
        ({"ggml.merges": "a b"}, "merges is no list of str"),
        ({"ggml.model": 3}, "tokenizer.ggml.model is 3 and must be of type str"),
        ({"ggml.pre": True}, "tokenizer.ggml.pre is True and must be of type str"),
        ({"ggml.eos_token_id": 97}, "its EOS is id 97 and there are 97 tokens"),
        ({"ggml.bos_token_id": "0"}, "bos_token_id is '0' and must be of type int"),
        ({"chat_template": 5}, "tokenizer.chat_template is 5 and must be of type str"),
        ({"ggml.tokens": [*_metadata()["ggml.tokens"][:-1], "ab"]}, "ids 95 and 96 are both 'ab'"),
    ],
)
def test_wrong_values_are_one_line(changes, message, tmp_path, save_vocabulary):
    path = save_vocabulary(tmp_path / "m.gguf", _metadata(**changes))
    with pytest.raises(CheckpointError, match=message) as error:
        load_gguf_tokenizer(path)
    assert "\n" not in str(error.value)


def test_a_token_that_is_no_unicode_is_one_line(tmp_path, save_vocabulary):
    path = save_vocabulary(tmp_path / "m.gguf", _metadata())
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\x02\0\0\0\0\0\0\0ab", b"\x02\0\0\0\0\0\0\0a\xff", 1))
    with pytest.raises(VocabularyError, match=r"token 95 \('a\\udcff'\) is no UTF-8") as error:
        load_gguf_tokenizer(path)
    str(error.value).encode()  # and can be printed


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
