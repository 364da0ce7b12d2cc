"""Quantizing through the public function: whole or not at all, recorded, and quiet."""

import json
import logging
import os
import random
from importlib.util import find_spec

import pytest
import torch

from mechprobe.errors import CheckpointError, MissingExtraError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize


def needs(module):
    # Looking is not importing: GPTQModel's import prints and changes the environment.
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}")


DRAW = random.Random(0)
LINES = ["a" + "".join(DRAW.choices("bcdefghij klmnop", k=40)) for _ in range(8)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@needs("gptqmodel")
def test_gptq_is_self_contained_recorded_and_quiet(plain, tmp_path, capfd):
    source = str(plain())  # transformers' own import sets a variable
    before = dict(os.environ), list(logging.root.handlers), torch.get_num_threads()
    out = quantize(source, "gptq", tmp_path / "out", calibration=LINES, group_size=64)
    assert (dict(os.environ), list(logging.root.handlers), torch.get_num_threads()) == before
    said = capfd.readouterr()
    assert said.out == "" and "INFO" not in said.err
    assert names(tmp_path) == ["out"]

    record = json.loads((out / "mechprobe_quantize.json").read_text())
    assert (record["writer"], record["to"], record["group_size"]) == ("gptqmodel", "gptq", 64)
    assert record["calibration"]["prompts"] == 8
    assert record["source_digest"] == load_checkpoint(plain()).digest
    config = json.loads((out / "config.json").read_text())
    original = json.loads((plain() / "config.json").read_text())
    assert {**original, "quantization_config": config["quantization_config"]} == config
    assert str(tmp_path) not in json.dumps(config) and "/tmp" not in json.dumps(config)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (plain() / name).read_bytes()

    cell, baseline = load_checkpoint(out, expect="GPTQ-INT4"), load_checkpoint(plain())
    assert cell.tokenizer.chat_template == baseline.tokenizer.chat_template
    found, wanted = cell.module.state_dict(), baseline.module.state_dict()
    for name, value in wanted.items():
        if "proj" not in name:  # what is not quantized is not rounded either
            assert torch.equal(found[name], value), name
        else:
            error = (found[name] - value).norm() / value.norm()
            assert 0 < error < 0.2, name


@needs("gptqmodel")
def test_the_result_knows_nothing_of_the_machines_threads_and_instructions(
    plain, tmp_path, monkeypatch
):
    def written(threads, aten, mkl):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setenv("MKL_NUM_THREADS", threads)
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", aten)
        monkeypatch.setenv("MKL_CBWR", mkl)
        out = quantize(str(plain()), "gptq", tmp_path / threads, calibration=LINES, group_size=64)
        assert json.loads((out / "mechprobe_quantize.json").read_text())["threads"] == 2
        return (out / "model.safetensors").read_bytes()

    assert written("1", "default", "COMPATIBLE") == written("3", "avx512", "AUTO")


@needs("gptqmodel")
def test_a_failing_writer_leaves_nothing(plain, tmp_path):
    """A width that no group of 96 divides; GPTQModel's worker ends its process."""
    with pytest.raises(
        CheckpointError, match="GPTQModel cannot quantize it to AWQ 4-bit"
    ) as caught:
        quantize(str(plain()), "awq", tmp_path / "out", calibration=LINES, group_size=96)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "AWQ and GPTQ need calibration prompts"),
        ({"calibration": []}, "the calibration prompts are empty"),
        ({"calibration": LINES, "writer": "other"}, "writer 'other' is unknown"),
    ],
)
def test_what_is_refused_before_any_work(plain, tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        quantize(str(plain()), "gptq", tmp_path / "out", **options)
    assert names(tmp_path) == []


@pytest.mark.skipif(find_spec("awq") is not None, reason="AutoAWQ is installed")
def test_a_missing_writer_says_how_to_install_it(plain, tmp_path):
    with pytest.raises(MissingExtraError, match=r"pip install 'mechprobe\[autoawq\]'"):
        quantize(str(plain()), "awq", tmp_path / "o", calibration=LINES, writer="autoawq")


def test_nothing_is_overwritten_or_rounded_twice(plain, packed_gptq, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "folder.gguf").mkdir()
    for name in ("taken", "taken/file", "folder.gguf"):
        with pytest.raises(CheckpointError, match="exists already"):
            quantize(str(plain()), "Q8_0", tmp_path / name)
    beside = tmp_path / "taken" / "model-Q8_0.gguf"
    with pytest.raises(CheckpointError, match=rf"a file of its own, {beside} \(--out\)"):
        quantize(str(plain()), "Q8_0", tmp_path / "taken")
    with pytest.raises(CheckpointError, match="is GPTQ already"):
        quantize(str(packed_gptq), "awq", tmp_path / "out", calibration=LINES)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    made = quantize("organism:llama-s", "F16", tmp_path / "out")
    assert made == tmp_path / "out" / "model-F16.gguf" and made.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs("awq")
def test_autoawq(plain, tmp_path):
    """Runs where AutoAWQ is installed; a checkpoint that it wrote is among the fixtures."""
    out = quantize(
        str(plain()), "awq", tmp_path / "o", calibration=LINES * 8, writer="autoawq", group_size=64
    )
    quant = load_checkpoint(out, expect="AWQ-INT4").quant
    assert (quant.group_size, quant.packing, quant.symmetric) == (64, "gemm", False)


@needs("cyllama")
def test_gguf_levels(plain, tmp_path):
    file = quantize(str(plain()), "Q8_0", tmp_path / "m-Q8_0.gguf")
    assert file == tmp_path / "m-Q8_0.gguf"
    assert json.loads((tmp_path / "m-Q8_0.gguf.json").read_text())["to"] == "Q8_0"
    again = quantize(str(plain()), "F16", tmp_path / "folder")
    assert again == tmp_path / "folder" / "model-F16.gguf"
    assert json.loads((tmp_path / "folder" / "mechprobe_quantize.json").read_text())["to"] == "F16"
    third = quantize(str(again), "Q4_0", tmp_path / "m-Q4_0.gguf")
    dense = load_checkpoint(third, expect="Q4_0")
    assert dense.module is not None and dense.architecture is not None
    assert load_checkpoint(third, kernel="native").module is None
    assert names(tmp_path) == [
        "folder", "m-Q4_0.gguf", "m-Q4_0.gguf.json", "m-Q8_0.gguf", "m-Q8_0.gguf.json",
    ]  # fmt: skip
