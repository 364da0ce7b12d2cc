"""Precision found in the tensors: bits per weight by hand, fall-backs, and labels that lie."""

import subprocess
import sys

import gguf
import numpy as np
import pytest

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.models.quantize_gguf import LADDER


@pytest.mark.parametrize("level", LADDER)
def test_the_ladder_is_found_as_written(tiny_gguf, level):
    info = read_gguf_info(tiny_gguf("llama", level))
    assert (info.precision, info.method) == (level, "gguf")


@pytest.mark.parametrize(
    ("level", "bits"), [("F16", 16.0), ("Q8_0", 8 * 34 / 32), ("Q6_K", 8 * 210 / 256)]
)
def test_bits_of_uniform_levels(tiny_gguf, level, bits):
    info = read_gguf_info(tiny_gguf("llama", level))
    assert info.bits_per_weight == bits
    assert bits < info.bits_per_weight_total < bits + 0.2


def test_bits_of_a_mixed_level_add_up_to_the_file(tiny_gguf):
    path = tiny_gguf("llama", "Q4_K_M")
    info = read_gguf_info(path)
    tensors = gguf.GGUFReader(path).tensors
    quantized = [t for t in tensors if t.tensor_type.name.startswith("Q")]
    stored, weights = (sum(int(n) for n in c) for c in zip(
        *((t.n_bytes, t.n_elements) for t in quantized), strict=True
    ))  # fmt: skip
    assert info.bits_per_weight == pytest.approx(8 * stored / weights)
    assert any("mixed level" in note for note in info.notes)
    assert info.tensor_types["Q4_K"] > info.tensor_types["Q6_K"]


def write(path, label, kinds, width=256):
    """A GGUF of one matrix per storage type, contents all zero."""
    writer = gguf.GGUFWriter(path, "llama")
    if label is not None:
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{label}"])
    for layer, name in enumerate(kinds):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((4, width // block * size), dtype=np.uint8)
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("label", "kinds"),
    [
        ("Q4_K_M", ["Q8_0", "Q8_0"]),
        ("Q8_0", ["Q4_K", "Q6_K"]),
        ("Q5_K_M", ["Q4_K", "Q6_K"]),
        ("F16", ["Q8_0"]),
        ("Q2_K", ["F16"]),
        ("Q6_K", ["Q6_K", "Q4_K"]),
    ],
)
def test_labels_that_lie(tmp_path, label, kinds):
    path = write(tmp_path / "m.gguf", label, kinds)
    with pytest.raises(PrecisionError, match=f"mislabelled: general.file_type says {label} but"):
        read_gguf_info(path)


@pytest.mark.parametrize(
    ("label", "kind"),
    [("Q4_K_M", "Q5_0"), ("Q5_K_M", "Q5_1"), ("Q6_K", "Q8_0"), ("Q2_K", "IQ4_NL")],
)
def test_fall_backs_of_odd_widths_are_noted(tmp_path, label, kind):
    info = read_gguf_info(write(tmp_path / "m.gguf", label, [kind, kind], width=96))
    assert info.precision == label
    assert info.notes == (f"2 matrices fell back to {kind}: width 96 is no multiple of 256",)


def test_a_fall_back_needs_an_odd_width(tmp_path):
    with pytest.raises(PrecisionError, match="mislabelled"):
        read_gguf_info(write(tmp_path / "m.gguf", "Q4_K_M", ["Q5_0"], width=512))


def test_no_label_and_an_unknown_one(tmp_path):
    info = read_gguf_info(write(tmp_path / "a.gguf", None, ["Q5_K", "Q5_K", "Q6_K"]))
    assert info.precision == "Q5_K"
    assert "no general.file_type" in info.notes[0]
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_uint32("general.file_type", 250)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general\.file_type is 250"):
        read_gguf_info(tmp_path / "b.gguf")


def test_reading_the_header_loads_no_torch(tiny_gguf):
    code = (
        "import sys; from pathlib import Path; from mechprobe.models.gguf_info import *; "
        f"read_gguf_info(Path({str(tiny_gguf())!r})); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
