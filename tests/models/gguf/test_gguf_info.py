"""Precision found in the tensors: bits per weight by hand, fall-backs, and labels that lie."""

import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mechprobe.errors import CheckpointError, CheckpointWarning, PrecisionError
from mechprobe.generation import open_engine
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.models.gguf_levels import LADDER
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize_gguf import quantize_gguf

sys.path.insert(0, str(Path(__file__).parent))
from gguf_copy import copy_gguf


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
        ("F16", ["Q4_1", "Q4_1"]),
        ("F16", ["F16", "Q8_0"]),
        ("F16", ["BF16"]),
        ("BF16", ["F16"]),
        ("Q2_K", ["F16"]),
        ("Q2_K", ["Q4_0", "Q3_K"]),
        ("IQ2_M", ["F16", "F16"]),
    ],
)
def test_labels_that_lie(tmp_path, label, kinds):
    path = write(tmp_path / "m.gguf", label, kinds)
    with pytest.raises(PrecisionError, match=f"mislabelled: general.file_type says {label} but"):
        read_gguf_info(path)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("Q4_K_M", "Q5_0"), ("Q5_K_M", "Q5_1"), ("Q6_K", "Q8_0"), ("Q2_K", "IQ4_NL"),
        ("Q2_K", "Q4_0"), ("Q3_K_S", "IQ4_NL"), ("Q3_K_S", "Q4_0"), ("IQ4_XS", "IQ4_NL"),
    ],
)  # fmt: skip
def test_fall_backs_of_odd_widths_are_noted(tmp_path, label, kind):
    info = read_gguf_info(write(tmp_path / "m.gguf", label, [kind, kind], width=96))
    assert info.precision == label
    assert info.warnings == (f"2 matrices fell back to {kind}: width 96 is no multiple of 256",)


def test_a_fall_back_needs_an_odd_width(tmp_path):
    with pytest.raises(PrecisionError, match="mislabelled"):
        read_gguf_info(write(tmp_path / "m.gguf", "Q4_K_M", ["Q5_0"], width=512))


def test_a_level_that_no_matrix_could_have_is_not_any_level(tmp_path):
    for label, kind in (("Q2_K", "Q8_0"), ("Q4_K_M", "Q4_0"), ("Q4_K_M", "F16")):
        with pytest.raises(PrecisionError, match="mislabelled"):
            read_gguf_info(write(tmp_path / "m.gguf", label, [kind, kind], width=96))


def test_experts_published_in_four_bits_stay_so_in_a_16_bit_file(tmp_path):
    info = read_gguf_info(write(tmp_path / "m.gguf", "F16", ["F16", "MXFP4"]))
    assert info.precision == "F16" and "1 x MXFP4" in info.warnings[0]
    with pytest.raises(PrecisionError, match="mislabelled"):
        read_gguf_info(write(tmp_path / "m.gguf", "F16", ["MXFP4"]))


@pytest.mark.parametrize(
    ("label", "kinds", "below"),
    [
        ("Q4_K_M", ["Q4_K", "Q3_K", "IQ2_XXS", "Q6_K"], "1 x Q3_K, 1 x IQ2_XXS among 4"),
        ("Q6_K", ["Q6_K", "Q4_K"], "1 x Q4_K among 2"),
        ("Q8_0", ["Q8_0", "Q4_K", "BF16"], "1 x Q4_K among 3"),
    ],
)
def test_a_mix_that_goes_below_its_label_is_read_and_warned_of(tmp_path, label, kinds, below):
    info = read_gguf_info(write(tmp_path / "m.gguf", label, kinds))
    assert info.precision == label
    assert info.tensor_types == dict.fromkeys(kinds, 1)
    sizes = [gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] for kind in kinds]
    packed = [8 * size / block for block, size in sizes if block > 1]
    bits = sum(packed) / len(packed)
    assert below in info.warnings[0] and info.warnings[0].endswith(f"; {bits:.2f} bits per weight")


def merged(out, label, parts):
    """A GGUF of the file "", but for tensors whose name holds another's."""
    readers = {name: gguf.GGUFReader(path) for name, path in parts.items()}
    tensors = []
    for i, tensor in enumerate(readers[""].tensors):
        name = next((n for n in parts if n and n in tensor.name), "")
        found = readers[name].tensors[i]
        tensors.append((found.name, found.data, found.tensor_type))
    kind = int(gguf.LlamaFileType[f"MOSTLY_{label}"])
    return copy_gguf(parts[""], out, keys={"general.file_type": kind}, tensors=tensors)


def test_a_dynamic_mix_runs_on_both_kernels(tiny_gguf, tmp_path, id_prompts):
    """As unsloth's: labelled Q4_K_M, its feed-forward in fewer bits, its values in more."""
    levels = {"": "Q4_K_M", "ffn_down": "Q2_K", "ffn_up": "Q3_K_S", "attn_v": "Q8_0"}
    parts = {name: tiny_gguf("llama", level) for name, level in levels.items()}
    path = merged(tmp_path / "tiny-UD-Q4_K_XL.gguf", "Q4_K_M", parts)
    for name in ("Q4_K_M", "UD-Q4_K_XL", "Q4_K_L"):
        with pytest.warns(CheckpointWarning, match="a mix of its maker's"):
            dense = load_checkpoint(path, expect=name)
    for name in ("Q4_K_S", "Q3_K_M", "UD-Q3_K_XL", "Q8_0", "F16"):
        with pytest.raises(PrecisionError, match=f"{name} was asked for"):
            load_checkpoint(path, expect=name)
    with (
        pytest.warns(CheckpointWarning),
        open_engine(load_checkpoint(path, kernel="native")) as engine,
    ):
        native = engine.next_token_logprobs(id_prompts[:8])
    for ids, row in zip(id_prompts[:8], native, strict=True):
        logits = dense.module(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        probabilities = np.exp(row[: len(logits)].astype(np.float64))
        assert (probabilities * (row[: len(logits)] - logits.numpy())).sum() < 2e-3


QUANTIZE = """
import sys
import cyllama.llama.llama_cpp as llama
params = llama.LlamaModelQuantizeParams()
params.ftype = int(sys.argv[3])
llama.model_quantize(sys.argv[1], sys.argv[2], params)
"""


@pytest.mark.parametrize("level", ["Q2_K", "Q3_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"])
def test_fall_backs_are_those_that_llama_cpp_counts(tiny_gguf, tmp_path, level):
    """Rows of 192 weights are no multiple of 256, those of the feed-forward's end are."""
    path = quantize_gguf(tiny_gguf("llama_width_192"), level, tmp_path / "m.gguf")
    info = read_gguf_info(path)
    assert info.precision == level
    number = gguf.LlamaFileType[f"MOSTLY_{level}"]
    code = [sys.executable, "-c", QUANTIZE, tiny_gguf("llama_width_192"), tmp_path / "x.gguf"]
    said = subprocess.run([*code, str(int(number))], capture_output=True, text=True, check=True)
    counted = re.search(r"WARNING: (\d+) of \d+ tensor\(s\) required", said.stderr + said.stdout)
    noted = sum(int(line.split()[0]) for line in info.warnings if "fell back" in line)
    assert noted + 1 == int(counted[1])  # the embedding is no matrix of a block


def test_a_real_models_fall_backs_are_read(smollm2_gguf, tmp_path):
    """SmolLM2 is 576 wide: at Q2_K none of its matrices is Q2_K."""
    info = read_gguf_info(smollm2_gguf)
    assert (info.precision, info.tensor_types) == ("Q4_1", {"Q4_1": 210, "F32": 61, "Q8_0": 1})
    assert info.warnings == ()


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
