"""Inside its box a weight changes nothing that llama.cpp's quantizer writes."""

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from mechprobe.controls.boxes import BLOCK, LEVELS, box
from mechprobe.errors import CheckpointError


def stored(weight, level):
    """The bytes of a GGUF tensor, by the `gguf` package's own quantizer."""
    return quantize(weight.float().numpy(), GGMLQuantizationType[level])


def matrices(rows):
    """Bell-shaped, on a grid already, of tiny steps, with ties of extremes, zero and constant."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, 4 * BLOCK, generator=draw) * 0.05
    weight[0] = torch.randint(-8, 8, (4 * BLOCK,), generator=draw) / 64
    weight[1] *= 1e-4
    weight[2, :BLOCK] = 0.0
    weight[2, BLOCK : 2 * BLOCK] = 0.25
    weight[3] = weight[3].sign() * 0.125
    weight[4, 0], weight[4, 1] = 0.5, -0.5
    return weight.half().float()


@pytest.mark.parametrize("level", LEVELS)
def test_no_point_of_a_box_changes_a_bit(level):
    weight = matrices(64)
    bounds = box(weight, level)
    wanted = stored(weight, level)
    assert (bounds.low <= weight).all() and (weight <= bounds.high).all()
    assert bounds.free > 0.75
    draw = torch.Generator().manual_seed(1)
    wild = [weight + torch.randn(weight.shape, generator=draw) * size for size in (1e-3, 1.0)]
    for point in (bounds.low.float(), bounds.high.float(), *wild):
        bounds.project_(point)
        shipped = point.half()
        assert (shipped >= bounds.low).all() and (shipped <= bounds.high).all()
        assert np.array_equal(stored(shipped, level), wanted)


@pytest.mark.parametrize(("level", "least"), [("Q4_0", 0.97), ("Q4_1", 0.97), ("Q8_0", 0.8)])
def test_boxes_are_as_wide_as_the_codes(level, least):
    """Bell-shaped weights of whole steps apart: a box is nearly all of its code's interval."""
    weight = (torch.randn(64, 8 * BLOCK, generator=torch.Generator().manual_seed(2)) / 4).half()
    bounds, blocks = box(weight, level), weight.float().reshape(-1, BLOCK)
    spread = {
        "Q4_0": blocks.abs().amax(1) / 8,
        "Q4_1": (blocks.amax(1) - blocks.amin(1)) / 15,
        "Q8_0": blocks.abs().amax(1) / 127,
    }[level]
    width = (bounds.high.float() - bounds.low.float()).reshape(-1, BLOCK) / spread[:, None]
    assert width[width > 0].median() > least
    assert width.max() <= (1.0 if level != "Q4_0" else 1.5) + 1e-6


def test_what_has_no_exact_box_is_refused():
    with pytest.raises(CheckpointError, match="Q4_K_M"):
        box(torch.zeros(2, 64), "Q4_K_M")
    with pytest.raises(CheckpointError, match="multiple of 32"):
        box(torch.zeros(2, 48), "Q4_0")
