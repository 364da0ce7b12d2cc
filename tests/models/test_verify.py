"""The precision found is the precision claimed and asked for, or one line says why not."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mechprobe.errors import CheckpointError, PrecisionError
from mechprobe.models.load import load_checkpoint


def change(folder, **changes):
    """Replace tensors by name; None removes one."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors[name] = value
        if value is None:
            del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


def claim(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))


def refused(folder, kind, message, **options):
    with pytest.raises(kind, match=message) as caught:
        load_checkpoint(folder, **options)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("dtype", "label", "bits"),
    [(torch.float16, "FP16", 16), (torch.bfloat16, "BF16", 16), (torch.float32, "FP32", 32)],
)
def test_plain_precisions(plain, tmp_path, dtype, label, bits):
    source = load_checkpoint(plain())
    source.module.to(dtype).save_pretrained(tmp_path / "model")
    source.tokenizer.save_pretrained(tmp_path / "model")
    checkpoint = load_checkpoint(tmp_path / "model", expect=label)
    assert (checkpoint.quant.precision, checkpoint.quant.method) == (label, "none")
    assert checkpoint.quant.bits_per_weight == checkpoint.quant.bits_per_weight_total == bits
    assert {p.dtype for p in checkpoint.module.parameters()} == {torch.float32}
    native = load_checkpoint(tmp_path / "model", kernel="native")
    assert {p.dtype for p in native.module.parameters()} == {dtype}
    assert not any(p.requires_grad for p in native.module.parameters())
    assert not native.module.training


def test_bits_per_weight_count_every_stored_byte(packed_gptq):
    quant = load_checkpoint(packed_gptq).quant
    file = packed_gptq / "model.safetensors"
    tensors = load_file(file)
    packed = {n: t for n, t in tensors.items() if not n.endswith("weight")}
    packed |= {n: t for n, t in tensors.items() if n.endswith("qweight")}
    weights = sum(8 * t.size for n, t in packed.items() if n.endswith("qweight"))
    loose = sum(t.size for n, t in tensors.items() if n not in packed)
    assert quant.bits_per_weight == pytest.approx(
        8 * sum(t.nbytes for t in packed.values()) / weights, rel=1e-12
    )
    assert quant.bits_per_weight_total == pytest.approx(
        8 * sum(t.nbytes for t in tensors.values()) / (weights + loose), rel=1e-12
    )
    assert quant.tensor_types == {"I32": 3 * 14, "F16": len(tensors) - 3 * 14}


def test_another_precision_was_asked_for(plain, packed_gptq):
    refused(
        plain(), PrecisionError, "AWQ-INT4 was asked for, the tensors are FP16", expect="AWQ-INT4"
    )
    refused(plain(), PrecisionError, "F16 is a GGUF file, FP16 a folder", expect="F16")
    refused(packed_gptq, PrecisionError, "AWQ-INT4 was asked for", expect="AWQ-INT4")
    assert load_checkpoint(packed_gptq, expect="gptq-int4").quant.precision == "GPTQ-INT4"


def test_silently_dequantized(plain, bench, tmp_path):
    source = load_checkpoint(plain())
    source.module.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    bench.edit(
        tmp_path / "model" / "config.json",
        quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
    )
    refused(tmp_path / "model", PrecisionError, "GPTQ 4-bit, but all weights are plain BF16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "says 8 bits, the tensors hold 4"),
        ({"group_size": 128}, r"groups of 128, the tensors have 8 group\(s\) over 512"),
        ({"group_size": -1}, r"groups of -1, the tensors have 8 group\(s\)"),
        ({"quant_method": "awq"}, "says AWQ, the tensors are packed as GPTQ"),
    ],
)
def test_the_configuration_lies(packed_gptq, changes, message):
    claim(packed_gptq, **changes)
    refused(packed_gptq, PrecisionError, message)


def test_zero_points_of_the_other_format(plain, bench, tmp_path):
    """Symmetric zero points are known, so a wrong `checkpoint_format` shows."""
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        return bench.random_gptq(
            rng, rows, columns, 4, 64, desc_act=False, symmetric=True, v1=False
        )

    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}
    folder = bench.repack(plain(), tmp_path / "model", layer, config)
    refused(folder, PrecisionError, "off by one.*says format gptq.*in gptq_v2")
    claim(folder, checkpoint_format="gptq_v2")
    assert load_checkpoint(folder).quant.symmetric is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "method 'bitsandbytes' is not supported"),
        ({"checkpoint_format": "marlin"}, "gptq format 'marlin' is not supported"),
    ],
)
def test_unsupported_formats(packed_gptq, changes, message):
    claim(packed_gptq, **changes)
    refused(packed_gptq, CheckpointError, message)


def test_packed_without_a_configuration(packed_gptq, bench):
    bench.edit(packed_gptq / "config.json", quantization_config=None)
    refused(packed_gptq, CheckpointError, "packed weights, but neither")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_scale_names_its_layer(packed_gptq, value):
    name = "model.layers.1.mlp.up_proj.scales"
    scales = load_file(packed_gptq / "model.safetensors")[name].copy()
    scales[1, 3] = value
    change(packed_gptq, **{name: scales})
    refused(packed_gptq, CheckpointError, r"model\.layers\.1\.mlp\.up_proj: a scale is NaN")


def test_a_wild_group_index(packed_gptq):
    name = "model.layers.0.mlp.up_proj.g_idx"
    index = load_file(packed_gptq / "model.safetensors")[name].copy()
    index[7] = 4
    change(packed_gptq, **{name: index})
    refused(packed_gptq, CheckpointError, "g_idx points outside the 4 groups")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.mlp.up_proj.scales", "up_proj: scales missing beside qweight"),
        ("model.norm.weight", r"1 tensor\(s\) missing from the files, first model\.norm\.weight"),
    ],
)
def test_a_missing_tensor(packed_gptq, name, message):
    change(packed_gptq, **{name: None})
    refused(packed_gptq, CheckpointError, message)


def test_a_missing_index_means_groups_in_order(packed_gptq):
    before = load_checkpoint(packed_gptq).module.state_dict()
    names = [n for n in load_file(packed_gptq / "model.safetensors") if n.endswith("g_idx")]
    change(packed_gptq, **dict.fromkeys(names))
    after = load_checkpoint(packed_gptq).module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_that_the_model_lacks(plain, packed_gptq, tmp_path):
    change(packed_gptq, **{"model.layers.9.mlp.up_proj.weight": np.ones((2, 2), np.float16)})
    refused(packed_gptq, CheckpointError, r"1 tensor\(s\) in the files but not in the model")


def test_a_bias_that_is_not_zero_is_not_dropped(packed_gptq):
    change(packed_gptq, **{"model.layers.0.mlp.up_proj.bias": np.ones(512, np.float16)})
    refused(packed_gptq, CheckpointError, "not in the model, first .*up_proj.bias")


def test_plain_shapes_that_do_not_fit(plain, bench, tmp_path):
    import shutil

    folder = shutil.copytree(plain(), tmp_path / "model")
    bench.edit(folder / "config.json", intermediate_size=128)
    refused(folder, CheckpointError, "cannot build it|of another shape")
