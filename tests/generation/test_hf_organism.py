"""The engine on a trained chat model, whose answers end by themselves and mean something."""

import numpy as np
import pytest
import torch

from mechprobe.behavior.multiple_choice import as_question, score_letters
from mechprobe.behavior.refusal import rules_label
from mechprobe.generation.graph import stop_ids
from mechprobe.generation.hf import TransformersEngine
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms import DEFAULT, list_organisms, world
from mechprobe.organisms.oracle import behaviour

TRAINED = {organism.name: organism.path for organism in list_organisms()}.get(DEFAULT)
LABEL_OF = {
    "refused": "FULL_REFUSAL",
    "partly": "PARTIAL_REFUSAL",
    "complied": "COMPLIANCE",
}
pytestmark = pytest.mark.skipif(TRAINED is None, reason=f"organism {DEFAULT} is not trained here")


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(f"organism:{DEFAULT}", dtype=torch.float32)


def test_batched_text_is_that_of_one_at_a_time_generate(checkpoint):
    requests = world.heldout_requests(24, 0)
    prompts = encode(checkpoint.tokenizer, [request.text for request in requests])
    answers = TransformersEngine(checkpoint, batch_size=16).generate(prompts.ids, max_new_tokens=24)
    ends = stop_ids(checkpoint)
    for answer, row in zip(answers, prompts.ids, strict=True):
        ids = torch.tensor([row])
        out = checkpoint.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=sorted(ends),
        )[0, len(row) :].tolist()
        assert answer.ids == tuple(out[:-1] if out[-1] in ends else out)
    assert sum(answer.stop == "eos" for answer in answers) >= 40
    oracle = [behaviour(answer.text) for answer in answers]
    assert {"refused", "complied"} <= set(oracle)
    for answer, found in zip(answers, oracle, strict=True):
        if found in LABEL_OF:
            assert rules_label(answer.text) == LABEL_OF[found], answer.text


def test_letters_agree_with_what_the_model_says(checkpoint):
    items = world.questions(40, 0)
    questions = [as_question(item, id=f"q{i}") for i, item in enumerate(items)]
    prompts = encode(checkpoint.tokenizer, [question.prompt for question in questions])
    engine = TransformersEngine(checkpoint)
    result = score_letters(engine, prompts, questions, checkpoint.tokenizer)
    said = [a.text.strip()[:1] for a in engine.generate(prompts.ids, max_new_tokens=4)]
    chosen = ["ABCD"[choice.chosen] for choice in result.choices]
    assert np.mean([a == b for a, b in zip(said, chosen, strict=True)]) >= 0.95
    assert result.letter_mass > 0.9
    right = sum(letter == item.answer for letter, item in zip(chosen, items, strict=True))
    assert (result.accuracy.count, result.accuracy.n) == (right, 40)
