"""The table's rows, fitted to configs."""

import pytest
import transformers

from mechprobe.errors import ArchitectureError
from mechprobe.models.architectures import ARCHITECTURES, architecture_for, backbone_path


def test_an_unknown_model_type_is_named_beside_the_supported_ones():
    with pytest.raises(ArchitectureError, match=r"'opt' has no row .* llama, mistral"):
        architecture_for(transformers.OPTConfig())


def test_no_model_type_is_served_twice():
    served = [name for row in ARCHITECTURES for name in row.model_types]
    assert len(served) == len(set(served)) >= 16


def test_a_row_follows_the_config():
    parallel = transformers.GPTNeoXConfig(use_parallel_residual=True)
    assert architecture_for(parallel).parallel
    assert not architecture_for(transformers.GPTNeoXConfig(use_parallel_residual=False)).parallel
    assert architecture_for(transformers.PhiConfig()).parallel
    granite = architecture_for(
        transformers.GraniteConfig(residual_multiplier=0.22, embedding_multiplier=12.0)
    )
    assert (granite.residual_multiplier, granite.embedding_multiplier) == (0.22, 12.0)
    plain = transformers.Gemma4TextConfig(hidden_size_per_layer_input=0)
    assert architecture_for(plain).extra_added is None
    assert architecture_for(transformers.Gemma4TextConfig()).extra_added is not None


def test_a_bare_backbone_is_refused():
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model = transformers.LlamaModel(config)
    with pytest.raises(ArchitectureError, match=r"LlamaModel: no blocks at model\.layers"):
        backbone_path(model, architecture_for(model))
