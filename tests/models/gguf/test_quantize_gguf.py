"""llama.cpp's quantizer: what it writes is what was asked for, and is recorded."""

import json
from collections import Counter

import gguf
import pytest

from mechprobe.errors import CheckpointError, CheckpointWarning
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.models.gguf_levels import NEED_IMATRIX
from mechprobe.models.load import load_checkpoint
from mechprobe.models.makeable import require_makeable
from mechprobe.models.quantize import quantize
from mechprobe.models.quantize_gguf import quantize_gguf
from mechprobe.models.source import resolve_source


def test_the_tool_is_recorded_beside_the_file(tiny_gguf):
    path = tiny_gguf("llama", "Q4_K_M")
    record = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert record["level"] == "Q4_K_M"
    assert record["writer"] in ("cyllama", "llama-quantize")
    assert record["writer_version"]
    assert record["bits_per_weight"] == round(read_gguf_info(path).bits_per_weight, 4)


@pytest.mark.parametrize(
    ("asked", "level"),
    [
        ("Q4_0", "Q4_0"),
        ("Q4_1", "Q4_1"),
        ("Q5_1", "Q5_1"),
        ("iq4_nl", "IQ4_NL"),
        ("q4_k", "Q4_K_M"),
    ],
)
def test_levels_outside_the_ladder(tiny_gguf, tmp_path, asked, level):
    made = quantize_gguf(tiny_gguf(), asked, tmp_path / "m.gguf")
    assert read_gguf_info(made).precision == level


@pytest.mark.parametrize("level", NEED_IMATRIX)
def test_a_level_that_needs_an_importance_matrix_is_known_by_name(tiny_gguf, tmp_path, level):
    by_hand = "write it with llama.cpp's llama-quantize, and name that .gguf as source"
    with pytest.raises(CheckpointError, match=f"requires an imatrix! {by_hand}"):
        quantize_gguf(tiny_gguf(), level, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    source = resolve_source(str(tiny_gguf()))
    with pytest.raises(
        CheckpointError, match=f"^{level} requires an importance matrix .*{by_hand}"
    ):
        require_makeable(source, level.lower())


def test_unknown_level(tiny_gguf, tmp_path):
    with pytest.raises(
        CheckpointError, match="GGUF level 'Q9' is unknown; the ladder is F16, Q8_0"
    ):
        quantize_gguf(tiny_gguf(), "Q9", tmp_path / "m.gguf")


def test_not_from_a_quantized_file(tiny_gguf, tmp_path):
    with pytest.raises(CheckpointError, match="is Q8_0; quantize from the F16 file"):
        quantize_gguf(tiny_gguf("llama", "Q8_0"), "Q4_K_M", tmp_path / "m.gguf")


def program(tmp_path, monkeypatch, script):
    """A `llama-quantize` of our own on PATH."""
    file = tmp_path / "bin" / "llama-quantize"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent), prepend=":")


def test_a_failing_quantizer_leaves_nothing(tiny_gguf, tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo half > \"$2\"\necho 'main: out of disk' >&2\nexit 1")
    with pytest.raises(CheckpointError, match="llama-quantize failed: main: out of disk"):
        quantize_gguf(tiny_gguf(), "Q8_0", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo \"failed to quantize '$1' to '$2'\" >&2; exit 1", "failed to quantize 'the source'"),
        ('cp {q8} "$2"', r"as Q4_K_M: llama-quantize wrote Q8_0"),
        ('head -c 9000 {q8} > "$2"', "as Q4_K_M: truncated"),
        ('cp {lie} "$2"', "as Q4_K_M: mislabelled: general.file_type says Q4_K_M but"),
    ],
)
def test_messages_name_the_model_and_no_temporary_file(
    tiny_folder, tiny_gguf, tmp_path, monkeypatch, script, message
):
    lie = bytearray(tiny_gguf("llama", "Q8_0").read_bytes())
    at = lie.index(b"general.file_type") + len("general.file_type") + 4
    lie[at] = gguf.LlamaFileType.MOSTLY_Q4_K_M
    (tmp_path / "lie").write_bytes(lie)
    script = script.format(q8=tiny_gguf("llama", "Q8_0"), lie=tmp_path / "lie")
    program(tmp_path, monkeypatch, script)
    with pytest.raises(CheckpointError, match=message) as caught:
        quantize(str(tiny_folder()), "Q4_K_M", tmp_path / "out" / "m.gguf")
    text = str(caught.value)
    assert text.startswith(str(tiny_folder())) and text.count(str(tiny_folder())) == 1
    assert ".tmp" not in text and str(tmp_path) not in text
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("level", ["Q2_K", "Q3_K_S", "Q4_K_M"])
def test_a_width_without_the_level_is_quantized_and_read(tiny_folder, tmp_path, level):
    """As SmolLM2 (576 wide): most matrices fall back, at Q2_K none is left."""
    file = quantize(str(tiny_folder("llama_width_192")), level, tmp_path / "m.gguf")
    with pytest.warns(CheckpointWarning, match="fell back to .*: width 192"):
        found = load_checkpoint(file, expect=level)
    reader = gguf.GGUFReader(file)
    assert found.quant.tensor_types == Counter(t.tensor_type.name for t in reader.tensors)
    record = json.loads((tmp_path / "m.gguf.json").read_text())
    assert set(found.quant.warnings) <= set(record["notes"])
