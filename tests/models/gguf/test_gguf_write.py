"""Writing F16 files: whole or not at all, and clear lines for what cannot be written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import CONVERTER_VARIABLE, write_f16_gguf
from mechprobe.models.rendering import encode


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that may be spoiled."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


@pytest.fixture(autouse=True)
def _no_converter(monkeypatch):
    monkeypatch.delenv(CONVERTER_VARIABLE, raising=False)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_second_bos_can_be_added(tiny_gguf):
    metadata = read_gguf(tiny_gguf()).metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert read_gguf(tiny_gguf("qwen2")).metadata["tokenizer.ggml.pre"] == "qwen2"


def test_values_beyond_float16(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "m.gguf"
    out.write_text("what stood here before")
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight has values beyond float16"):
        write_f16_gguf(folder, out)
    assert out.read_text() == "what stood here before"
    assert {p.name for p in tmp_path.iterdir()} == {"model", "m.gguf"}


def test_truncated_weights(folder, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: "):
        write_f16_gguf(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_no_weights(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors file"):
        write_f16_gguf(folder, tmp_path / "m.gguf")


def test_unknown_architecture(folder, tmp_path):
    edit(folder / "config.json", model_type="mamba")
    with pytest.raises(ArchitectureError, match="'mamba' cannot be written as GGUF; supported"):
        write_f16_gguf(folder, tmp_path / "m.gguf")


def test_other_tokenizers_need_llama_cpps_converter(folder, tmp_path, monkeypatch):
    pre = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    edit(folder / "tokenizer.json", pre_tokenizer=pre)
    with pytest.raises(CheckpointError, match=r"put convert_hf_to_gguf\.py on PATH"):
        write_f16_gguf(folder, tmp_path / "m.gguf")
    script = tmp_path / "convert.py"
    script.write_text("import sys\nprint('no such model', file=sys.stderr)\nsys.exit(1)\n")
    monkeypatch.setenv(CONVERTER_VARIABLE, str(script))
    with pytest.raises(CheckpointError, match=r"convert_hf_to_gguf\.py failed: no such model"):
        write_f16_gguf(folder, tmp_path / "m.gguf")


def test_several_chat_templates_are_carried_over(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = {"default": tokenizer.chat_template, "rag": "rag {{ messages[0]['content'] }}"}
    tokenizer.chat_template = named
    tokenizer.save_pretrained(folder)
    read = load_gguf_tokenizer(write_f16_gguf(folder, tmp_path / "F16.gguf"))
    assert read.chat_template == named
    prompts = encode(read, ["hi"])
    assert prompts.notes == ("chat template 'default' of default, rag",)
    assert prompts.digest == encode(tokenizer, ["hi"]).digest
