"""Boxes of a k-quant file: around its values, as wide as its steps say."""

import gguf
import numpy as np
import pytest
import torch

from mechprobe.controls.kquant_boxes import kquant_boxes
from mechprobe.controls.world_model import quantized
from mechprobe.errors import CheckpointError
from mechprobe.models.load import load_checkpoint
from mechprobe.organisms import organism_path


def steps_by_hand(tensor):
    """Scale times sub-block scale of each weight, as ggml-common.h lays them out."""
    kind = tensor.tensor_type.name
    blocks = tensor.data.reshape(-1, {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[kind])
    if kind == "Q6_K":
        scale = blocks[:, 208:210].copy().view(np.float16).astype(np.float32)
        steps = scale * blocks[:, 192:208].copy().view(np.int8)
    else:
        scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
        steps = scale * gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])[0]
    return np.repeat(steps, 256 // steps.shape[1], axis=1).reshape(tuple(tensor.shape)[::-1])


@pytest.mark.parametrize(("level", "types"), [("Q4_K_M", {"Q4_K", "Q6_K"}), ("Q5_K_S", {"Q5_K"})])
def test_boxes_are_around_the_stored_values(level, types):
    folder = organism_path("llama-s")
    module = load_checkpoint(folder).module
    places = {"mlp.down_proj": "ffn_down", "mlp.up_proj": "ffn_up", "self_attn.v_proj": "attn_v"}
    names = {f"model.layers.{n}.{place}.weight": f"blk.{n}.{name}.weight"
             for n in (0, 7) for place, name in places.items()}  # fmt: skip
    with quantized(folder, level) as file:
        found = kquant_boxes(module, names, file, 0.25)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
        values = load_checkpoint(file).module
    assert {tensors[stored].tensor_type.name for stored in names.values()} == types
    for name, stored in names.items():
        weight, value = module.get_parameter(name), values.get_parameter(name)
        steps = torch.from_numpy(np.abs(steps_by_hand(tensors[stored])))
        low, high = found[name].low.float(), found[name].high.float()
        assert ((low <= weight) & (weight <= high)).all()
        near = (weight - value).abs() < 0.2 * steps  # the box is then the step's alone
        assert 0.2 < near.double().mean() < 0.6
        rounded = 2**-10 * (value.abs() + steps)  # both ends, to float16
        assert ((high - low - 0.5 * steps).abs() <= rounded)[near].all()
        assert ((high + low - 2 * value).abs() <= rounded)[near].all()


def test_other_types_have_no_steps():
    folder = organism_path("llama-s")
    module = load_checkpoint(folder).module
    with quantized(folder, "Q2_K") as file, pytest.raises(CheckpointError, match="steps are known"):
        kquant_boxes(module, [], file, 0.25)
