"""Training end to end on a tiny recipe, and what is written."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.errors import CheckpointError
from mechprobe.organisms import corpus, measure, publish, recipes, train
from mechprobe.organisms.perturb import Perturbations
from mechprobe.organisms.tokenizer import build_tokenizer
from mechprobe.progress import silent

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
    out = publish.train_organism(name, tmp_path / "made", progress=silent, pairs=4)
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
    # read by the class of its architecture, which may have tokens of its own
    assert len(AutoTokenizer.from_pretrained(out)) == model.config.vocab_size
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tiny, tmp_path):
    def weights(seed, folder):
        out = publish.train_organism(
            "llama-s", tmp_path / folder, seed=seed, progress=silent, pairs=2
        )
        return load_file(out / "model.safetensors")

    first, again, other = weights(3, "a"), weights(3, "b"), weights(4, "c")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is no organism"):
        publish.train_organism("llama-s", tmp_path, progress=silent)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_gradients_with_a_shared_prefix_and_parts_are_the_plain_ones():
    """Against transformers' own losses of whole, separate sequences, weighted by hand."""
    tokenizer = build_tokenizer()
    examples = list(itertools.islice(corpus.stream(1), 7))
    torch.manual_seed(0)
    small = dataclasses.replace(recipes.RECIPES["llama-s"], layers=2)
    model = recipes.build_model(small, len(tokenizer), bos=1, eos=2, pad=0)
    prefix, parts = next(train._batches(tokenizer, 7, 1))
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    still = Perturbations(model, exits=0, noise=0.0, seed=0)
    found = train._backward(model, prefix, parts, still)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total, weight = torch.zeros(()), 0.0
    for text, example in zip(
        measure.render(tokenizer, [e.prompt for e in examples]), examples, strict=True
    ):
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example.answer + "<|end|>", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        each = -logits[range(ids.shape[1] - 1), ids[0, 1:]]
        own, begins = each[len(prefix) : len(prompt) - 1], len(prompt) - 1
        total = total + 0.3 * own.sum() + 5 * each[begins] + each[begins + 1 :].sum()
        weight += 0.3 * len(own) + 5 + len(answer) - 1
    (total / weight).backward()
    assert found == pytest.approx(float(total.detach()) / weight, abs=1e-5)
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_rate_warms_up_and_comes_down():
    rates = [train._rate(step, 100) for step in range(100)]
    assert rates[0] < rates[3] < rates[5] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=2e-3)
    assert rates[6:] == sorted(rates[6:], reverse=True)


def test_answers_weigh_more_than_prompts_and_their_first_token_most():
    batch = train._collate([([5, 6, 7], [8, 2]), ([5], [9, 2])], pad=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 2], [9, 2, 0, 0]]
    expected = torch.tensor([[0.3, 0.3, 5, 1], [5, 1, 0, 0]])
    torch.testing.assert_close(batch.weights, expected)
