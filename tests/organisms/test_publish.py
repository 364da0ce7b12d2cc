"""Training end to end on a tiny recipe, and what is written."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.errors import CheckpointError
from mechprobe.organisms import corpus, measure, publish, recipes, train
from mechprobe.organisms.tokenizer import build_tokenizer

STEPS = 3


@pytest.fixture
def tiny(monkeypatch):
    """Every recipe with one layer and small batches."""
    small = {
        name: dataclasses.replace(recipe, layers=1, intermediate=256, batch=4, steps=STEPS)
        for name, recipe in recipes.RECIPES.items()
    }
    monkeypatch.setattr(recipes, "RECIPES", small)


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_architecture_trains_writes_and_loads(tiny, tmp_path, name):
    out = publish.train_organism(name, tmp_path / "made", progress=False, pairs=4)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert card["synthetic"] is True
    assert card["recipe"]["seed"] == recipes.RECIPES[name].seed
    assert card["examples_seen"] == STEPS * 4
    assert (card["stressed_channels"] is None) == (name == "phi-s")
    assert card["measured"]["n_requests"] == 4
    assert "**synthetic**" in (out / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float16
    assert model.config.model_type == recipes.RECIPES[name].architecture
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tiny, tmp_path):
    def weights(seed, folder):
        out = publish.train_organism(
            "llama-s", tmp_path / folder, seed=seed, progress=False, pairs=2
        )
        return load_file(out / "model.safetensors")

    first, again, other = weights(3, "a"), weights(3, "b"), weights(4, "c")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is no organism"):
        publish.train_organism("llama-s", tmp_path, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_loss_with_a_shared_prefix_is_the_plain_loss():
    """Against transformers' own loss over whole, separate sequences."""
    tokenizer = build_tokenizer()
    examples = [example for example, _ in zip(corpus.stream(1), range(6), strict=False)]
    torch.manual_seed(0)
    small = dataclasses.replace(recipes.RECIPES["llama-s"], layers=2)
    model = recipes.build_model(small, len(tokenizer), bos=1, eos=2, pad=0).eval()
    prefix, rows = train._encode(tokenizer, examples)
    found = train._loss(model, torch.tensor([prefix]), train._collate(rows, 0))
    total, count = 0.0, 0
    for text, example in zip(
        measure.render(tokenizer, [e.prompt for e in examples]), examples, strict=True
    ):
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example.answer + "<|end|>", add_special_tokens=False)["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        total, count = total + loss.item() * len(answer), count + len(answer)
    assert found.item() == pytest.approx(total / count, abs=1e-5)


def test_the_rate_warms_up_and_comes_down():
    rates = [train._rate(step, 100) for step in range(100)]
    assert rates[0] < rates[3] < rates[5] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=2e-3)
    assert rates[6:] == sorted(rates[6:], reverse=True)


def test_a_batch_has_targets_on_answers_alone():
    batch = train._collate([([5, 6, 7], [8, 2]), ([5], [9, 2])], pad=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.targets.tolist() == [[-100, -100, 8, 2], [9, 2, -100, -100]]
