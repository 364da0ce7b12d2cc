import json
import math

import numpy as np
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechprobe.behavior.multiple_choice import (
    Question,
    as_question,
    choose,
    letter_tokens,
    load_questions,
    score_letters,
    with_options,
)
from mechprobe.errors import GenerationError, NumericsError, PromptFileError, VocabularyError
from mechprobe.generation.hf import TransformersEngine
from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo
from mechprobe.models.rendering import encode

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_level(spaced="ABCD"):
    """A byte-level tokenizer that knows `A` … and, for the letters in `spaced`, ` A` too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    merges = [("Ġ", letter) for letter in spaced]
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Fixed:
    """An engine whose log-probabilities are given: the refusals to report need odd ones."""

    name = "fixed"

    def __init__(self, rows):
        self.rows = np.asarray(rows, np.float32)

    def next_token_logprobs(self, prompts):
        assert len(prompts) == len(self.rows)
        return self.rows


def ask(n):
    return [
        Question(f"q{i}", with_options(f"Number {i}?", list("wxyz")), tuple("wxyz"), i % 4)
        for i in range(n)
    ]


def test_letters_are_found_with_and_without_a_space():
    tokenizer = byte_level()
    plain = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    spaced = [tokenizer.convert_tokens_to_ids("Ġ" + letter) for letter in "ABCD"]
    assert letter_tokens(tokenizer, "ABCD") == [
        tuple(sorted(pair)) for pair in zip(plain, spaced, strict=True)
    ]


def test_a_form_that_only_some_letters_have_is_left_out():
    tokenizer = byte_level(spaced="AB")
    assert letter_tokens(tokenizer, "ABCD") == [
        (tokenizer.convert_tokens_to_ids(letter),) for letter in "ABCD"
    ]
    assert all(len(ids) == 2 for ids in letter_tokens(tokenizer, "AB"))


def test_a_tokenizer_without_letters_cannot_score():
    backend = byte_level().backend_tokenizer
    from tokenizers.models import WordLevel

    backend.model = WordLevel({"x": 0, "?": 1}, unk_token="?")
    with pytest.raises(VocabularyError, match="no single tokens for the letters ABCD"):
        letter_tokens(PreTrainedTokenizerFast(tokenizer_object=backend), "ABCD")


def test_scores_are_those_of_a_plain_forward_in_float64():
    tokenizer = byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 40
    checkpoint = Checkpoint(
        "tiny", None, QuantInfo("FP32", "none"), "dense", tokenizer, "0", model,
        architecture_for(model),
    )  # fmt: skip
    questions = ask(23)
    prompts = encode(tokenizer, [q.prompt for q in questions])
    with TransformersEngine(checkpoint, batch_size=5) as engine:
        result = score_letters(engine, prompts, questions, tokenizer)
    right, mass = 0, []
    for question, ids, choice in zip(questions, prompts.ids, result.choices, strict=True):
        with torch.no_grad():
            logits = model.double()(torch.tensor([ids])).logits[0, -1].numpy()
        p = np.exp(logits - logits.max())
        p /= p.sum()
        both = [
            p[tokenizer.convert_tokens_to_ids(x)] + p[tokenizer.convert_tokens_to_ids("Ġ" + x)]
            for x in "ABCD"
        ]
        np.testing.assert_allclose(choice.logprobs, np.log(both), atol=1e-4)
        np.testing.assert_allclose(choice.option_probs, np.array(both) / sum(both), atol=1e-4)
        assert choice.chosen == int(np.argmax(both))
        right += int(np.argmax(both)) == question.answer
        mass.append(sum(both))
    low, high = proportion_confint(right, 23, method="wilson")
    assert (result.accuracy.count, result.accuracy.n, result.ties) == (right, 23, 0)
    assert (result.accuracy.low, result.accuracy.high) == pytest.approx((low, high))
    assert result.letter_mass == pytest.approx(np.mean(mass), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, -math.log(262), -math.inf])
def test_an_engine_without_logprobs_is_refused_and_not_scored_at_chance(value):
    tokenizer, questions = byte_level(), ask(8)
    prompts = encode(tokenizer, [q.prompt for q in questions])
    flat = np.full((8, len(tokenizer)), value)
    with pytest.raises(GenerationError, match=r"all 8 questions .* accuracy is not measured"):
        score_letters(Fixed(flat), prompts, questions, tokenizer)


def test_a_tie_at_the_top_is_counted_and_not_credited():
    tokenizer, questions = byte_level(), ask(3)
    prompts = encode(tokenizer, [q.prompt for q in questions])
    rows = np.full((3, len(tokenizer)), -20.0)
    a, b, c = (tokenizer.convert_tokens_to_ids(x) for x in "ABC")
    rows[0, [a, b]] = -1.0  # the right answer is A, but B is as likely
    rows[1, b] = -1.0
    rows[2, c] = -1.0
    result = score_letters(Fixed(rows), prompts, questions, tokenizer)
    assert [choice.chosen for choice in result.choices] == [None, 1, 2]
    assert (result.accuracy.count, result.ties) == (2, 1)


def test_nan_is_an_error_and_not_a_wrong_answer():
    tokenizer = byte_level()
    row = np.full(len(tokenizer), -3.0)
    row[tokenizer.convert_tokens_to_ids("B")] = np.nan
    with pytest.raises(NumericsError, match="question q0: NaN"):
        choose(ask(1)[0], row, letter_tokens(tokenizer, "ABCD"))


def test_letters_that_cannot_be_said_are_not_credited_and_leave_the_rest_alone():
    tokenizer, questions = byte_level(), ask(2)
    prompts = encode(tokenizer, [q.prompt for q in questions])
    rows = np.full((2, len(tokenizer)), -np.inf)
    rows[1, tokenizer.convert_tokens_to_ids("B")] = -1.0
    result = score_letters(Fixed(rows), prompts, questions, tokenizer)
    assert [choice.chosen for choice in result.choices] == [None, 1]
    assert (result.accuracy.count, result.ties) == (1, 1)
    assert result.letter_mass == pytest.approx(math.exp(-1.0) / 2)
    assert result.choices[1].option_probs == (0.0, 1.0, 0.0, 0.0)


def test_prompts_and_questions_must_belong_together():
    tokenizer, questions = byte_level(), ask(3)
    prompts = encode(tokenizer, [q.prompt for q in questions[:2]])
    with pytest.raises(PromptFileError, match="3 questions and 2 rendered prompts"):
        score_letters(Fixed(np.zeros((2, 5))), prompts, questions, tokenizer)


def test_questions_from_a_file(tmp_path):
    rows = [
        {"question": "Two and two?", "options": ["3", "4"], "answer": "b", "category": "sums"},
        {"prompt": "Pick.\nA) x\nB) y\nC) z", "options": ["x", "y", "z"], "answer": 2, "id": "p"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    one, two = load_questions(path)
    assert one == Question("q00001", "Two and two?\nA) 3\nB) 4", ("3", "4"), 1, "sums")
    assert (two.id, two.answer, two.letters) == ("p", 2, "ABC")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: needs an object"),
        ('{"options": ["a", "b"], "answer": 0}', "'prompt' .* is missing"),
        ('{"prompt": "x", "options": ["a"], "answer": 0}', "'options' needs 2 to 10"),
        ('{"prompt": "x", "options": ["a", " "], "answer": 0}', "every option needs a text"),
        ('{"prompt": "x", "options": ["a", "b"], "answer": "C"}', "letters AB or a position"),
        ('{"prompt": "x", "options": ["a", "b"], "answer": true}', "letters AB or a position"),
        ("", "no questions"),
    ],
)
def test_a_bad_question_names_the_line(tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(row)
    with pytest.raises(PromptFileError, match=message):
        load_questions(path)


def test_an_object_with_the_same_fields_is_a_question():
    item = type("Item", (), {"prompt": "Q", "options": ("a", "b"), "answer": "B"})()
    assert as_question(item, id="x") == Question("x", "Q", ("a", "b"), 1)
