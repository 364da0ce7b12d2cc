"""Layers that a cell shares with its baseline, held against torch on the tensors themselves."""

import copy

import torch

from mechprobe.models.load import load_checkpoint
from mechprobe.probes.shared_weights import compare, digests


@torch.no_grad()
def test_equal_rounded_and_changed_layers_are_told_apart():
    cell = load_checkpoint("organism:llama-s", kernel="dense")
    blocks = cell.module.model.layers
    for tensor in blocks[1].parameters():
        tensor += tensor * 1e-5  # lost in F16, whose spacing is 2^-11 to 2^-10
    below = digests(cell)
    before = copy.deepcopy(blocks.state_dict())
    blocks[1].half().float()
    blocks[2].mlp.down_proj.weight[3, 4] += 0.25
    blocks[3].mlp.down_proj.weight[0] *= 0  # -0.0 where a weight was negative
    base_3 = digests(cell)
    blocks[3].mlp.down_proj.weight[0] = 0.0
    found = compare(digests(cell), below)
    for i, kind in enumerate(found.layers):
        pairs = [(v, before[f"{i}.{k}"]) for k, v in blocks[i].state_dict().items()]
        exact = all(torch.equal(a, b) for a, b in pairs)
        rounded = all(torch.equal(a.half(), b.half()) for a, b in pairs)
        assert kind == ("exact" if exact else "F16" if rounded else None), i
    assert found.layers == ("exact", "F16", None, None, *["exact"] * 4)
    assert [found.reads_shared(i) for i in range(4)] == [True, True, False, False]
    assert found.reads_shared(-1)
    assert found.differs(2) and not found.differs(1)
    assert found.said([0]) == "weights equal the baseline's"
    assert found.said([0, 1]).endswith("but for the rounding of F16 only")
    assert compare(digests(cell), base_3).layers == ("exact",) * 8
    assert compare({k: v[:-1] for k, v in below.items()}, below) is None
