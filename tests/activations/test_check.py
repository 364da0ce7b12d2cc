"""The load-time check passes on true rows and catches rows that are nearly right."""

from dataclasses import replace

import pytest
import torch

from mechprobe.activations.check import check_architecture
from mechprobe.errors import ArchitectureError, NumericsError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_true_rows_pass(arch, fresh, dtype):
    checkpoint = fresh(arch)
    checkpoint.module.to(dtype)
    check_architecture(checkpoint)


@pytest.mark.parametrize(
    ("name", "wrong", "equation"),
    [
        ("granite", {"residual_multiplier": 1.0}, "resid_pre \\+ attn_out = resid_mid"),
        ("gemma2", {"attn_added": "self_attn"}, "resid_pre \\+ attn_out = resid_mid"),
        ("gemma3", {"mlp_added": "mlp"}, "resid_mid \\+ mlp_out = resid_post"),
        ("olmo2", {"mlp_added": "mlp"}, "resid_mid \\+ mlp_out = resid_post"),
        ("llama", {"mid": "mlp"}, "resid_pre \\+ attn_out = resid_mid"),
        ("gpt_neox_parallel", {"parallel": False}, "resid_pre \\+ attn_out = resid_mid"),
        ("phi", {"parallel": False, "mid": "mlp"}, "resid_pre \\+ attn_out = resid_mid"),
        ("gemma4", {"extra_added": None}, "resid_mid \\+ mlp_out = resid_post"),
        ("gemma4", {"layer_scalar": None}, "resid_mid \\+ mlp_out = resid_post"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_nearly_right_do_not(fresh, name, wrong, equation, dtype):
    checkpoint = fresh(name)
    checkpoint.module.to(dtype)
    checkpoint = replace(checkpoint, architecture=replace(checkpoint.architecture, **wrong))
    with pytest.raises(ArchitectureError, match=equation):
        check_architecture(checkpoint)


def test_damaged_weights_are_not_blamed_on_the_table(fresh):
    checkpoint = fresh("qwen2")
    checkpoint.module.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(NumericsError, match=r"blocks\.0\."):
        check_architecture(checkpoint)
