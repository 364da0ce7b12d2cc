"""compressed-tensors checkpoints, packed bit by bit as the format's description says."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mechprobe.errors import CheckpointError, CheckpointWarning
from mechprobe.models.load import load_checkpoint


def config(bits, group, symmetric, form="pack-quantized", activations=None):
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
        "group_size": group,
    }  # fmt: skip
    groups = {
        "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    }
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def layers(bench, bits, group, symmetric, kept):
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        groups = columns // group
        half = 2 ** (bits - 1)
        q = rng.integers(-half, half, (rows, columns))
        z = (
            np.zeros((rows, groups), int)
            if symmetric
            else rng.integers(-half, half, (rows, groups))
        )
        scale = (rng.random((rows, groups)) * 0.01 + 0.002).astype(np.float16)
        kept.append((q, z, scale))
        tensors = {
            "weight_packed": bench.pack_bits(q + half, bits),
            "weight_scale": scale,
            "weight_shape": np.array([rows, columns]),
        }
        if not symmetric:
            packed = bench.pack_bits(np.ascontiguousarray((z + half).T), bits)
            tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
        return tensors

    return layer


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(plain, bench, tmp_path, bits, symmetric):
    kept = []
    folder = bench.repack(
        plain(), tmp_path / "model", layers(bench, bits, 64, symmetric, kept),
        config(bits, 64, symmetric),
    )  # fmt: skip
    checkpoint = load_checkpoint(folder)
    state = checkpoint.module.state_dict()
    names = [n for n in load_file(plain() / "model.safetensors") if "proj.weight" in n]
    assert len(kept) == len(names) == 14
    for name, (q, z, scale) in zip(names, kept, strict=True):
        expected = np.zeros(q.shape, np.float32)
        for i in range(q.shape[1]):
            g = i // 64
            expected[:, i] = (q[:, i] - z[:, g]).astype(np.float32) * scale[:, g].astype(np.float32)
        assert np.array_equal(state[name].numpy(), expected), name
    quant = checkpoint.quant
    assert (quant.precision, quant.bits, quant.packing) == (f"W{bits}A16", bits, "pack")
    assert quant.symmetric is symmetric


def test_int8(plain, bench, tmp_path):
    rng = np.random.default_rng(0)
    kept = []

    def layer(rows, columns):
        q = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        kept.append((q, (rng.random((rows, 1)) * 0.001 + 0.0002).astype(np.float32)))
        return {"weight": q, "weight_scale": kept[-1][1]}

    folder = bench.repack(
        plain(), tmp_path / "model", layer,
        config(8, None, True, "int-quantized", {"num_bits": 8, "type": "int"}),
    )  # fmt: skip
    checkpoint = load_checkpoint(folder)
    state = checkpoint.module.state_dict()
    names = [n for n in load_file(plain() / "model.safetensors") if "proj.weight" in n]
    for name, (q, scale) in zip(names, kept, strict=True):
        assert np.array_equal(state[name].numpy(), q.astype(np.float32) * scale)
    assert checkpoint.quant.precision == "W8A8"
    assert any("not the quantized activations" in note for note in checkpoint.quant.notes)
    assert torch.isfinite(checkpoint.module(torch.arange(9)[None]).logits).all()


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
CACHE_NAMES = ("k_scale", "v_scale", "k_zero_point", "k_proj.output_scale", "v_proj.output_scale")


def add(folder, names):
    """Scales of a layer's attention, as llm-compressor stores them."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[f"model.layers.1.self_attn.{name}"] = np.full(1, 0.5, np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_quantized_cache_is_read_and_warned_of(plain, bench, tmp_path):
    claim = config(4, 64, True)
    kept = layers(bench, 4, 64, True, [])
    folder = bench.repack(plain(), tmp_path / "m", kept, claim)
    before = load_checkpoint(folder).module.state_dict()
    add(folder, CACHE_NAMES)
    with pytest.raises(CheckpointError, match=r"5 tensor.* in the files but not in the model"):
        load_checkpoint(folder)
    bench.edit(folder / "config.json", quantization_config={**claim, "kv_cache_scheme": CACHE})
    with pytest.warns(CheckpointWarning, match=r"keys and values in 8-bit float"):
        found = load_checkpoint(folder, expect="W4A16")
    state = found.module.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_the_cache_alone_may_be_quantized(plain, bench, tmp_path):
    folder = shutil.copytree(plain(), tmp_path / "m")
    claim = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}
    bench.edit(folder / "config.json", quantization_config={**claim, "kv_cache_scheme": CACHE})
    add(folder, ["k_scale", "v_scale"])
    with pytest.warns(CheckpointWarning, match="kv_cache_scheme"):
        found = load_checkpoint(folder, expect="FP16")
    ids = torch.arange(9)[None]
    assert torch.equal(found.module(ids).logits, load_checkpoint(plain()).module(ids).logits)


def rotated(*locations):
    """A transform as llm-compressor 0.14 writes it."""
    places = [{"ignore": [], "inverse": False, "location": at, "targets": []} for at in locations]
    group = {"apply": places, "head_dim": None, "randomize": False, "type": "hadamard"}
    return {"config_groups": {"R": group}}


MERGED = rotated("weight_output", "weight_input")


@pytest.mark.parametrize("location", ["input", "output", "q_attn", "k_cache"])
def test_rotations_of_activations_are_refused_by_name(plain, bench, tmp_path, location):
    online = rotated("weight_input", location)
    claim = {**config(4, 64, True), "transform_config": online}
    folder = bench.repack(plain(), tmp_path / "m", layers(bench, 4, 64, True, []), claim)
    with pytest.raises(CheckpointError, match=rf"R rotates activations .*\({location}\)"):
        load_checkpoint(folder)


def test_rotations_in_the_weights_are_read(plain, bench, tmp_path):
    claim = config(4, 64, True)
    folder = bench.repack(plain(), tmp_path / "m", layers(bench, 4, 64, True, []), claim)
    ids = torch.arange(9)[None]
    before = load_checkpoint(folder).module(ids).logits
    bench.edit(folder / "config.json", quantization_config={**claim, "transform_config": MERGED})
    assert torch.equal(load_checkpoint(folder, expect="W4A16").module(ids).logits, before)


def test_rotated_weights_need_not_be_quantized(plain, bench, tmp_path):
    folder = shutil.copytree(plain(), tmp_path / "m")
    only = {"quant_method": "compressed-tensors", "sparsity_config": {}, "transform_config": MERGED}
    bench.edit(folder / "config.json", quantization_config=only)
    ids = torch.arange(9)[None]
    found = load_checkpoint(folder, expect="FP16").module(ids).logits
    assert torch.equal(found, load_checkpoint(plain()).module(ids).logits)


def test_scales_of_static_activations_are_left_to_the_server(plain, bench, tmp_path):
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        q = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        return {"weight": q, "weight_scale": np.full((rows, 1), 0.001, np.float32)}

    static = {"num_bits": 8, "type": "int", "dynamic": False}
    claim = config(8, None, True, "int-quantized", static)
    folder = bench.repack(plain(), tmp_path / "m", layer, claim)
    add(folder, ["q_proj.input_scale", "q_proj.input_zero_point"])
    assert load_checkpoint(folder).quant.precision == "W8A8"


def test_no_native_kernel(plain, bench, tmp_path):
    folder = bench.repack(
        plain(), tmp_path / "model", layers(bench, 4, 64, True, []), config(4, 64, True)
    )
    with pytest.raises(CheckpointError, match="use kernel='dense'"):
        load_checkpoint(folder, kernel="native")
