"""Writing F16 files: whole or not at all, and clear lines for what cannot be written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mechprobe.errors import ArchitectureError, CheckpointError, CheckpointWarning
from mechprobe.generation.hf import TransformersEngine
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models import gguf_check
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import CONVERTER_VARIABLE, write_f16_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize
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
    edit(folder / "tokenizer.json", pre_tokenizer=METASPACE)
    with pytest.raises(CheckpointError, match=r"put convert_hf_to_gguf\.py on PATH"):
        write_f16_gguf(folder, tmp_path / "m.gguf")
    script = tmp_path / "convert.py"
    script.write_text("import sys\nprint('no such model', file=sys.stderr)\nsys.exit(1)\n")
    monkeypatch.setenv(CONVERTER_VARIABLE, str(script))
    with pytest.raises(CheckpointError, match=r"convert_hf_to_gguf\.py failed: no such model"):
        write_f16_gguf(folder, tmp_path / "m.gguf")


METASPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("mistral", {"sliding_window": 600, "max_position_embeddings": 2048}, "window: 600"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rope_type: 'dynamic'"),
    ],
)  # fmt: skip
def test_what_no_writer_can_carry_is_refused_before_the_converter(
    tiny_folder, tmp_path, name, changes, field
):
    folder = shutil.copytree(tiny_folder(name), tmp_path / "model")
    edit(folder / "config.json", **changes)
    edit(folder / "tokenizer.json", pre_tokenizer=METASPACE)
    with pytest.raises(ArchitectureError, match=f"a GGUF would be another model: .*{field}"):
        write_f16_gguf(folder, tmp_path / "m.gguf")


def test_what_the_text_does_not_reach_is_said(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_check, "_WORK", 0)  # as of a model too large for a longer text
    folder = shutil.copytree(tiny_folder("gemma2"), tmp_path / "model")
    edit(folder / "config.json", sliding_window=600, max_position_embeddings=1024)
    said = "the text of 64 tokens does not reach the sliding window of 600"
    for level, out in (("F16", "f.gguf"), ("Q8_0", "q.gguf"), ("Q8_0", "folder")):
        with pytest.warns(CheckpointWarning, match=said):
            made = quantize(str(folder), level, tmp_path / out)
        assert load_checkpoint(str(made), kernel="native").quant.notes[-1] == said
    (tmp_path / "q.gguf.json").write_text('{"f16": 3}')
    assert load_checkpoint(str(tmp_path / "q.gguf"), kernel="native").quant.notes == ()


def test_llama_cpp_stops_where_the_generation_config_alone_says(
    folder, tmp_path, without_comparison
):
    """At its EOS and two more, which are declared; a fourth is said."""
    prompts = [[5, 9, 30, 41], [12, 7]]

    def answers(name):
        file = write_f16_gguf(folder, tmp_path / name)
        with LlamaCppEngine(file, load_gguf_tokenizer(file)) as engine:
            llama_cpp = engine.generate(prompts, max_new_tokens=12)
        with TransformersEngine(load_checkpoint(folder)) as engine:
            return llama_cpp, engine.generate(prompts, max_new_tokens=12)

    free, _ = answers("free.gguf")
    third, fifth = free[0].ids[2], free[1].ids[4]
    own = AutoTokenizer.from_pretrained(folder).eos_token_id
    ends = {"eos_token_id": [own, third, fifth]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    for found in answers("ended.gguf"):
        for before, after in zip(free, found, strict=True):
            cut = min((before.ids.index(i) for i in (third, fifth) if i in before.ids), default=12)
            assert (after.stop, after.ids) == ("eos", before.ids[:cut])
    edit(folder / "generation_config.json", eos_token_id=[own, third, fifth, 200, 10_000])
    with pytest.warns(CheckpointWarning, match=r"answers of the folder end at .*, those of the"):
        write_f16_gguf(folder, tmp_path / "more.gguf")


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
