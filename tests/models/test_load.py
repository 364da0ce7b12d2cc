"""What a loaded checkpoint holds, and what is refused before anything is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mechprobe.errors import ArchitectureError, CheckpointError, TemplateError, VocabularyError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode


def copy(plain, tmp_path, kind="llama"):
    return shutil.copytree(plain(kind), tmp_path / "copy")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi", "qwen3_moe"])
def test_plain_is_transformers_own_load(plain, kind):
    ids = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(plain(kind), dtype=torch.float32)(ids).logits
    checkpoint = load_checkpoint(plain(kind))
    assert torch.equal(checkpoint.module(ids).logits, expected)
    assert checkpoint.kernel == "dense" and checkpoint.path == plain(kind)
    assert checkpoint.architecture is not None


def test_weights_that_are_named_from_the_backbone_on(plain, tmp_path):
    """As openai-community/gpt2 names them."""
    folder = copy(plain, tmp_path, "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    ids = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    assert torch.equal(load_checkpoint(folder).module(ids).logits, expected)


def test_a_weight_file_of_any_name(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (folder / "model.safetensors").rename(folder / "tiny.safetensors")
    ids = torch.arange(20)[None]
    expected = load_checkpoint(plain()).module(ids).logits
    assert torch.equal(load_checkpoint(folder).module(ids).logits, expected)


def test_dtype_is_the_callers(packed_gptq):
    checkpoint = load_checkpoint(packed_gptq, dtype=torch.bfloat16)
    exact = load_checkpoint(packed_gptq).module.state_dict()
    for name, value in checkpoint.module.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, exact[name].to(torch.bfloat16)), name


def test_dense_needs_no_quantizer(packed_gptq):
    """The configuration's quantization is left out of the graph, its generation settings kept."""
    module = load_checkpoint(packed_gptq).module
    assert not hasattr(module.config, "quantization_config")
    assert {type(m).__name__ for m in module.modules() if "proj" in type(m).__name__} == set()
    assert type(module.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert module.generation_config.eos_token_id == 1


def test_chat_templates(plain, tmp_path):
    checkpoint = load_checkpoint(plain(), chat_template="{{ messages[0]['content'] }}!")
    assert encode(checkpoint.tokenizer, ["hi"]).pieces == (("h", "i", "!"),)
    file = tmp_path / "t.jinja"
    file.write_text("?{{ messages[0]['content'] }}")
    checkpoint = load_checkpoint(plain(), chat_template=str(file))
    assert encode(checkpoint.tokenizer, ["hi"]).pieces == (("?", "h", "i"),)
    with pytest.raises(CheckpointError, match="no such chat template file"):
        load_checkpoint(plain(), chat_template="missing.jinja")


def test_no_chat_template_is_no_load_error(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (folder / "chat_template.jinja").unlink()
    checkpoint = load_checkpoint(folder)
    with pytest.raises(TemplateError, match="--chat-template"):
        encode(checkpoint.tokenizer, ["hi"])


def test_a_missing_tokenizer_can_be_given(plain, tmp_path):
    folder = copy(plain, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="--tokenizer") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert len(load_checkpoint(folder, tokenizer=plain()).tokenizer) == 260


def test_a_tokenizer_of_another_model(plain, tmp_path):
    folder = copy(plain, tmp_path)
    tokenizer = load_checkpoint(plain()).tokenizer
    tokenizer.add_tokens([f"word{i}" for i in range(9)])
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(VocabularyError, match="269 tokens and the model 264"):
        load_checkpoint(folder, tokenizer=tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_type": "no_such_model"}, ArchitectureError, "'no_such_model' is unknown"),
        (
            {"model_type": "no_such_model", "auto_map": {"AutoConfig": "a.B"}},
            CheckpointError,
            "trust_remote_code=True",
        ),
        ({"model_type": "opt"}, ArchitectureError, "'opt' has no row"),
    ],
)
def test_architectures_that_are_refused(plain, bench, tmp_path, changes, kind, message):
    folder = copy(plain, tmp_path)
    bench.edit(folder / "config.json", **changes)
    with pytest.raises(kind, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_broken_configuration(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json, line 1: not JSON"):
        load_checkpoint(folder)


def test_kernels_have_two_names(plain):
    with pytest.raises(CheckpointError, match="expected dense or native"):
        load_checkpoint(plain(), kernel="fast")
