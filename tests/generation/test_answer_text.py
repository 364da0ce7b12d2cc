"""Ids of real vocabularies become texts whose thoughts are marked, before anything is skipped."""

import pytest
from transformers import AutoTokenizer

from mechprobe.behavior.refusal import answer_of, rules_label
from mechprobe.generation.answer_text import answer_text, completion
from mechprobe.models.thoughts import Parts, canonical
from mechprobe.organisms.tokenizer import build_tokenizer

HARMONY = (
    "<|channel|>analysis<|message|>I must refuse? It is harmless.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Cast on\u00a0twenty stitches \U0001f9f6."
)


@pytest.fixture
def gptoss(lenml_tokenizer):
    return AutoTokenizer.from_pretrained(lenml_tokenizer("gptoss"))


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_channels_are_seen_before_special_tokens_are_skipped(gptoss):
    prompt, ids = ids_of(gptoss, "<|start|>assistant"), ids_of(gptoss, HARMONY)
    skipped = gptoss.decode(ids, skip_special_tokens=True)
    assert skipped.startswith("analysisI must") and "assistantfinalCast" in skipped
    text, start = answer_text(gptoss, prompt, ids)
    assert answer_of(text) == "Cast on\u00a0twenty stitches \U0001f9f6."
    assert gptoss.decode(ids[start:]) == answer_of(text)
    assert rules_label(text) == "COMPLIANCE"


def test_every_cut_of_a_channelled_answer_is_read_as_far_as_it_goes(gptoss):
    prompt, ids = ids_of(gptoss, "<|start|>assistant"), ids_of(gptoss, HARMONY)
    at = len(ids_of(gptoss, HARMONY[: HARMONY.index("Cast")]))
    for cut in range(1, len(ids)):
        text, start = answer_text(gptoss, prompt, ids[:cut])
        if cut < at:
            assert start is None and rules_label(text) == "UNCLEAR", text
        else:
            assert start == at
            assert answer_of(text) == gptoss.decode(ids[at:cut])


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "mistral_nemo", "llama2", "gemma3"])
def test_a_thought_that_the_prompt_opened_is_none_of_the_answer(lenml_tokenizer, name):
    tokenizer = AutoTokenizer.from_pretrained(lenml_tokenizer(name))
    prompt = ids_of(tokenizer, "Knit!\n<think>\n")
    ids = ids_of(tokenizer, "I cannot. Or can I?\n</think>\n\nSure, cast on.")
    text, start = answer_text(tokenizer, prompt, ids)
    assert text.startswith("<think>I cannot. Or can I?\n</think>")
    assert answer_of(text).strip() == "Sure, cast on."
    assert tokenizer.decode(ids[start:], skip_special_tokens=True).strip() == "Sure, cast on."
    cut, start = answer_text(tokenizer, prompt, ids[:5])
    assert start is None and answer_of(cut) is None
    closed = ids_of(tokenizer, "Knit!\n<think>\n\n</think>\n\n")
    assert answer_text(tokenizer, closed, ids[:5]) == (
        tokenizer.decode(ids[:5], skip_special_tokens=True),
        0,
    )


@pytest.mark.parametrize("thought", ["", "<think>Fine.</think>"])
def test_what_is_cut_before_its_first_word_is_unclear(thought):
    tokenizer = build_tokenizer()
    mark = tokenizer.bos_token_id
    assert mark in tokenizer.all_special_ids
    ids = [*ids_of(tokenizer, thought), mark, mark]
    cut = completion(tokenizer, ids_of(tokenizer, "a"), ids, "length")
    assert rules_label(cut.text) == "UNCLEAR" and cut.answer_start is None
    assert cut.text == canonical(Parts(thought, None))
    ended = completion(tokenizer, ids_of(tokenizer, "a"), ids, "eos")
    assert rules_label(ended.text) == "FULL_REFUSAL" and ended.answer_start is not None
