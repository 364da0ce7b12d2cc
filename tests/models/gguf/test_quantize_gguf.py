"""llama.cpp's quantizer: what it writes is what was asked for, and is recorded."""

import json

import pytest

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.models.quantize_gguf import quantize_gguf


def test_the_tool_is_recorded_beside_the_file(tiny_gguf):
    path = tiny_gguf("llama", "Q4_K_M")
    record = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert record["level"] == "Q4_K_M"
    assert record["writer"] in ("cyllama", "llama-quantize")
    assert record["writer_version"]
    assert record["bits_per_weight"] == round(read_gguf_info(path).bits_per_weight, 4)


def test_levels_outside_the_ladder(tiny_gguf, tmp_path):
    assert (
        read_gguf_info(quantize_gguf(tiny_gguf(), "Q4_0", tmp_path / "m.gguf")).precision == "Q4_0"
    )


def test_unknown_level(tiny_gguf, tmp_path):
    with pytest.raises(
        CheckpointError, match="GGUF level 'Q9' is unknown; the ladder is F16, Q8_0"
    ):
        quantize_gguf(tiny_gguf(), "Q9", tmp_path / "m.gguf")


def test_not_from_a_quantized_file(tiny_gguf, tmp_path):
    with pytest.raises(CheckpointError, match="is Q8_0; quantize from the F16 file"):
        quantize_gguf(tiny_gguf("llama", "Q8_0"), "Q4_K_M", tmp_path / "m.gguf")


def test_a_failing_quantizer_leaves_nothing(tiny_gguf, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho half > \"$2\"\necho 'main: out of disk' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    with pytest.raises(CheckpointError, match="llama-quantize failed: main: out of disk"):
        quantize_gguf(tiny_gguf(), "Q8_0", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]
