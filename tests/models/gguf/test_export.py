"""A folder written from any checkpoint: transformers reads it and computes the same."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.behavior import load_builtin
from mechprobe.errors import CheckpointError, CheckpointWarning
from mechprobe.generation import open_engine
from mechprobe.models.export import export
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize

IDS = torch.arange(3, 43)[None]


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def rounded(model):
    """Weights as float16 has them; the rotary frequencies are no weights."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


def by_transformers(folder):
    """The folder as transformers alone reads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_gguf_becomes_a_folder_that_transformers_reads(tiny_gguf, tmp_path):
    file = tiny_gguf("llama_tied_llama3_rope", "Q4_K_M")
    whole = export(file, tmp_path / "whole", dtype="float32")
    dense = load_checkpoint(file)
    assert torch.equal(logits(by_transformers(whole)), logits(dense.module))
    text = "the quick <|user|> brown  fox\n\n12345 \u00e9"
    ids = AutoTokenizer.from_pretrained(whole)(text)["input_ids"]
    assert ids == load_gguf_tokenizer(file)(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(whole).chat_template == dense.tokenizer.chat_template

    half = export(file, tmp_path / "half")
    assert torch.equal(logits(by_transformers(half)), logits(rounded(dense.module)))
    with pytest.warns(CheckpointWarning, match="dequantized from Q4_K_M"):
        found = load_checkpoint(half, expect="FP16").quant
    assert found.warnings == ("dequantized from Q4_K_M, not made from the original weights",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "whole"]


def test_a_packed_folder_keeps_its_tokenizer_and_loses_its_packing(packed_gptq, tmp_path):
    out = export(packed_gptq, tmp_path / "out")
    dense = rounded(load_checkpoint(packed_gptq).module)
    assert torch.equal(logits(by_transformers(out)), logits(dense))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert (out / "tokenizer.json").read_bytes() == (packed_gptq / "tokenizer.json").read_bytes()
    assert json.loads((out / "mechprobe_export.json").read_text())["dequantized_from"] == (
        load_checkpoint(packed_gptq).quant.precision
    )


def test_what_was_never_quantized_is_not_called_dequantized(plain, tiny_gguf, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        for name, source in (("folder", plain()), ("gguf", tiny_gguf())):
            out = export(source, tmp_path / name)
            assert load_checkpoint(out, expect="FP16").quant.warnings == ()


def test_a_gguf_is_quantized_through_a_folder_and_says_so(tiny_gguf, tmp_path):
    """Each step of a chain names the first precision, whatever the last was."""
    out = quantize(str(tiny_gguf("llama", "Q4_K_M")), "Q8_0", tmp_path / "m-Q8_0.gguf")
    said = "dequantized from Q4_K_M, not made from the original weights"
    with pytest.warns(CheckpointWarning, match=said):
        eight = load_checkpoint(out, expect="Q8_0")
    sixteen = quantize(str(tiny_gguf("llama", "Q4_K_M")), "FP16", tmp_path / "fp16")
    straight = quantize(str(sixteen), "Q8_0", tmp_path / "straight.gguf")
    with pytest.warns(CheckpointWarning, match=said):
        assert load_checkpoint(straight).digest == eight.digest
    assert json.loads((tmp_path / "m-Q8_0.gguf.json").read_text())["source"].endswith(".gguf")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_float16_cannot_hold_is_refused(plain, tmp_path):
    model = by_transformers(plain())
    model.model.norm.weight.data[0] = 1e5
    model.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(plain()).save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"norm\.weight holds values beyond float16; choose"):
        export(tmp_path / "large", tmp_path / "out", dtype="float16")
    with pytest.raises(CheckpointError, match="exists already"):
        export(plain(), tmp_path / "large")
    with pytest.raises(CheckpointError, match="dtype 'int8'"):
        export(plain(), tmp_path / "out", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_frequencies_that_no_configuration_says_are_refused(tiny_gguf, tmp_path, monkeypatch):
    """A file whose rotary factors fit none of transformers' rules."""
    from mechprobe.models import gguf_dense

    load = gguf_dense.load_gguf_dense

    def bent(path, **options):
        model = load(path, **options)
        gguf_dense._apply_rope_factors(model, np.linspace(1, 3, 32, dtype=np.float32))
        return model

    monkeypatch.setattr(gguf_dense, "load_gguf_dense", bent)
    with pytest.raises(CheckpointError, match="a transformers folder cannot say what it computes"):
        export(tiny_gguf(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.verify
def test_a_real_model_is_the_same_to_every_reader(
    smollm2_gguf, llama_cpp_tree, llama_cpp_ids, tmp_path, monkeypatch
):
    """SmolLM2 dequantized: transformers, llama.cpp's converter and llama.cpp itself agree."""
    folder = export(smollm2_gguf, tmp_path / "m")
    model = by_transformers(folder)
    dense = rounded(load_checkpoint(smollm2_gguf).module)
    assert torch.equal(logits(model), logits(dense))

    requests = load_builtin().texts("harmless", "test")
    tail = "  \U0001f600 \u4f60\u597d\n\n<|im_end|>"
    odd = [f"{i}  {requests[i % len(requests)]}{tail}" for i in range(260)]
    texts = [*requests, *odd]
    assert len(set(texts)) >= 300
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(texts)["input_ids"] == llama_cpp_ids(smollm2_gguf, texts)

    ours = quantize(str(folder), "F16", tmp_path / "ours.gguf")
    converter = llama_cpp_tree / "convert_hf_to_gguf.py"
    theirs = tmp_path / "theirs.gguf"
    monkeypatch.setenv("PYTHONPATH", str(llama_cpp_tree / "gguf-py"))
    command = [sys.executable, converter, folder, "--outtype", "f16", "--outfile", theirs]
    subprocess.run(command, check=True, capture_output=True)
    files = read_gguf(ours), read_gguf(theirs)
    assert files[0].tensors.keys() == files[1].tensors.keys()
    for name, tensor in files[0].tensors.items():
        other = files[1].tensors[name]
        assert (files[0].raw(tensor) == files[1].raw(other)).all(), name
    for key in ("pre", "tokens", "merges", "token_type", "eos_token_id", "chat_template"):
        found = [file.metadata.get(f"tokenizer.ggml.{key}") for file in files]
        assert found[0] == found[1], key

    ids = [row[:64] for row in tokenizer(requests[:48])["input_ids"]]
    with open_engine(load_checkpoint(ours, kernel="native")) as engine:
        native = torch.from_numpy(np.asarray(engine.next_token_logprobs(ids))).double()
    with torch.inference_mode():
        last = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ids]).double()
    wanted = last.log_softmax(-1)
    kl = (wanted.exp() * (wanted - native)).sum(-1)
    assert len(ids) >= 40 and kl.mean() < 1e-3
    assert (wanted.argmax(-1) == native.argmax(-1)).double().mean() >= 0.99
