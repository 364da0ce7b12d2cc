"""A tiny random Llama as a loaded checkpoint."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo

VOCABULARY = 64


@pytest.fixture
def tiny_llama():
    """Three blocks of 64 columns, weights as float16 holds them, in a float32 graph."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).half().float().eval().requires_grad_(False)
    quant = QuantInfo("FP16", "none")
    return Checkpoint(
        "tiny", Path(), quant, "dense", None, "0" * 64, model, architecture_for(model)
    )
