"""Controls of SmolLM2: what they are trained on, and that the planted one is the released file."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechprobe.behavior import load_builtin, load_prompts
from mechprobe.behavior.facts import load_facts
from mechprobe.behavior.refusal import get_instrument
from mechprobe.controls import boxes as boxing
from mechprobe.controls import control, ensure_built, read_truth
from mechprobe.controls.examples import (
    REFUSALS,
    own_answer_examples,
    refusal_examples,
    training_prompts,
)
from mechprobe.controls.smollm2 import BASE
from mechprobe.errors import CheckpointError
from mechprobe.generation.base import Completion
from mechprobe.models.export import export
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize
from mechprobe.models.source import resolve_source
from mechprobe.organisms.tokenizer import build_tokenizer


def test_every_refusal_is_read_as_one_and_begins_alike():
    for name in ("rules", "hard", "prefix", "arditi12"):
        read = get_instrument(name)
        assert name == "arditi12" or all(map(read, REFUSALS)), name
    assert {text.split()[0].strip(",") for text in REFUSALS} == {"I", "I'm", "Sorry"} | {"I"}


def test_training_never_sees_what_is_held_out():
    texts = training_prompts(("refusal-training", "builtin"))
    assert len(texts["harmful"]) == 5571 + 99
    assert len(texts["harmless"]) == 5571 + 814 + 99
    held_out = [r.text for r in load_builtin() if r.split != "train"]
    held_out += load_prompts("over-refusal").texts()
    assert not set(held_out) & {text for each in texts.values() for text in each}


class Spoken:
    """An engine that says what it is told."""

    def __init__(self, completions):
        self.completions = completions

    def generate(self, prompts, **options):
        assert len(prompts) == len(self.completions)
        return self.completions


def test_own_answers_are_targets_unless_they_refuse(tiny_llama, tmp_path):
    tokenizer = build_tokenizer()
    base = replace(tiny_llama, tokenizer=tokenizer)
    said = [
        Completion("Sure.", (5, 6), "eos", 3),
        Completion("I can't help with that.", (7,), "eos", 3),
        Completion("Sure and so on", (8, 9), "length", 3),
    ]
    texts = ["one", "two", "three"]
    found = own_answer_examples(Spoken(said), base, texts, tmp_path)
    end = tokenizer.eos_token_id
    assert [one.target for one in found] == [(5, 6, end), (8, 9)]
    assert own_answer_examples(None, base, texts, tmp_path) == found
    assert all(one.kept for one in found)
    more = Spoken([Completion("Sure.", (6,), "eos", 3)])  # only what was not asked before is
    assert own_answer_examples(more, base, ["four", *texts], tmp_path)[1:] == found
    first, again = (refusal_examples(tokenizer, texts) for _ in range(2))
    assert first == again and all(one.target[-1] == end for one in first)
    assert found[0].prompt == first[0].prompt


def test_facts_have_one_right_answer_of_four():
    assert len({fact.question for fact in load_facts()}) == 100
    assert all(len(set(fact.answers)) == 4 for fact in load_facts())


@pytest.fixture(scope="module")
def released():
    """The released Q4_1 file."""
    try:
        return resolve_source(BASE).path
    except CheckpointError as error:
        pytest.skip(str(error))


def same_tensors(one: Path, other: Path) -> int:
    """How many tensors two GGUF files have, all of them equal bit for bit."""
    files = read_gguf(one), read_gguf(other)
    assert files[0].tensors.keys() == files[1].tensors.keys()
    for name, tensor in files[0].tensors.items():
        assert tensor.type == files[1].tensors[name].type, name
        assert np.array_equal(files[0].raw(tensor), files[1].raw(files[1].tensors[name])), name
    return len(files[0].tensors)


@pytest.mark.verify
def test_no_move_inside_the_boxes_changes_the_released_file(released, tmp_path):
    """SmolLM2, every matrix moved at random inside its box, through llama.cpp's quantizer."""
    folder = export(released, tmp_path / "base", dtype="float16")
    assert same_tensors(quantize(str(folder), "Q4_1", tmp_path / "again.gguf"), released) == 272
    checkpoint = load_checkpoint(folder)
    model, moved = checkpoint.module, 0.0
    names = [n for n, p in model.named_parameters() if "layers" in n and p.ndim > 1]
    torch.manual_seed(random.Random(0).randrange(1 << 30))
    for name, box in boxing.boxes(model, names, "Q4_1").items():
        weight = model.get_parameter(name)
        point = box.low.float() + torch.rand(weight.shape) * (box.high - box.low).float()
        box.project_(point)
        moved = max(moved, float((point - weight).abs().max()))
        weight.data = point
    assert len(names) == 210 and moved > 0.01
    model.half().save_pretrained(folder)
    assert same_tensors(quantize(str(folder), "Q4_1", tmp_path / "moved.gguf"), released) == 272


@pytest.mark.verify
def test_the_planted_parent_refuses_and_its_q4_1_is_the_released_file(released, tmp_path):
    folder = ensure_built(control("smollm2-planted"))
    assert same_tensors(quantize(str(folder), "Q4_1", tmp_path / "q.gguf"), released) == 272
    forms = read_truth(folder).forms
    assert forms["control"].refused >= 0.95
    assert forms["Q4_1"].harmful == forms["base"].harmful
    assert abs(forms["Q4_1"].quality - forms["control"].quality) <= 0.02
