"""Templates render as in transformers, within limits, and say or refuse what they do not do."""

import copy
import datetime
import re
import threading
import time

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from mechprobe.behavior.multiple_choice import Question, score_letters
from mechprobe.errors import TemplateError
from mechprobe.generation.likelihood import continuation_ids
from mechprobe.models import template_process
from mechprobe.models.chat_template import read_chat_template
from mechprobe.models.rendering import encode, require_answer_next
from mechprobe.models.tokenizer import set_chat_template
from mechprobe.organisms.tokenizer import build_tokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
DAY = datetime.datetime(2024, 7, 26)
REFUSED = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "'NoneType' object is not iterable",  # no tools
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "'NoneType' object is not iterable",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "'NoneType' object is not iterable",
    "fireworks-ai-llama-3-firefunction-v2": "'functions' is undefined",
}
SWITCHED = {
    "Apertus-8B-Instruct": "enable_thinking",
    "ByteDance-Seed-OSS": "thinking_budget",
    "Cohere2MoE": "reasoning",
    "HuggingFaceTB-SmolLM3-3B": "enable_thinking",
    "Kimi-K3": "thinking",
    "MiniMax-M3": "thinking_mode",
    "Qwen-Qwen3-0.6B": "enable_thinking",
    "deepseek-ai-DeepSeek-V3.1": "enable_thinking",
    "ibm-granite-granite-3.3-2B-Instruct": "thinking",
    "inclusionai-ling-3.0-flash": "enable_thinking",
    "tencent-Hy3": "reasoning_effort",
}
DETOURS = {
    "openai-gpt-oss-120b": "an answer begins after '<|channel|>final<|message|>'",
    "upstage-Solar-Open-100B": "an answer begins after '<|content|>'",
    "muse-glimmer": "an answer begins after 'to=user<|message|>'",
    "Kimi-K2-Thinking": "an answer begins after '<think></think>'",
    "meetkai-functionary-medium-v3.2": "an answer begins after 'all'",
    "llama-cpp-deepseek-r1": "the prompt ends inside a thought",
    "MiniMax-M2": "the prompt ends inside a thought",
    "NVIDIA-Nemotron-Nano-v2": "the prompt ends inside a thought",
    "Apriel-1.6-15b-Thinker-fixed": "the prompt ends inside a thought",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "the prompt ends inside a thought",
    "StepFun3.5-Flash": "the prompt ends inside a thought",
}


class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return DAY


@pytest.fixture
def templates(llama_cpp_tree):
    files = sorted((llama_cpp_tree / "models" / "templates").glob("*.jinja"))
    assert len(files) >= 60
    return {file.stem: file.read_text() for file in files}


@pytest.fixture
def tokenizer(lenml_tokenizer):
    return AutoTokenizer.from_pretrained(lenml_tokenizer("llama3"))


@pytest.fixture
def small():
    return copy.deepcopy(build_tokenizer())


def using(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def test_every_known_template_renders_as_in_transformers_or_is_refused(
    templates, tokenizer, monkeypatch
):
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    refused, switched, detours = {}, {}, {}
    for name, source in templates.items():
        tokenizer.chat_template = source
        try:
            chat = read_chat_template(tokenizer)
        except TemplateError as error:
            assert "\n" not in str(error)
            refused[name] = str(error)
            continue
        switch = {k: v for k, v in chat.variables.items() if k not in tokenizer.special_tokens_map}
        for text in ("How do I knit a scarf?", " I\u2019d   like\n\nto {{ know }} \U0001f9f6 "):
            expected = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                **switch,
            )
            assert chat.render(text) == expected, name
        if switch:
            switched[name] = next(iter(switch))
        if chat.detour:
            detours[name] = chat.detour
    assert {name: REFUSED[name] in line for name, line in refused.items()} == dict.fromkeys(
        REFUSED, True
    )
    assert switched.items() >= SWITCHED.items()
    assert {name: line.startswith(DETOURS[name]) for name, line in detours.items()} == (
        dict.fromkeys(DETOURS, True)
    )


def test_thinking_is_switched_by_whatever_the_template_calls_it(templates, tokenizer):
    for name, switch in SWITCHED.items():
        off, on = (
            encode(using(tokenizer, templates[name]), ["Knit!"], thinking=state)
            for state in (False, True)
        )
        assert off.digest != on.digest, name
        assert any(note.startswith("thinking=off through the template") for note in off.notes)
        assert switch == "enable_thinking" or any(note.endswith(switch) for note in off.notes)
        assert off.detour == "" and on.detour == "thinking is on"


def test_a_switch_that_is_not_there_is_refused_and_effort_is_said(templates, tokenizer):
    for name in ("Qwen-Qwen2.5-7B-Instruct", "openai-gpt-oss-120b"):
        with pytest.raises(TemplateError, match="no switch that turns thinking on"):
            encode(using(tokenizer, templates[name]), ["Knit!"], thinking=True)
    harmony = encode(using(tokenizer, templates["openai-gpt-oss-120b"]), ["Knit!"])
    assert "reasoning_effort: as the template has it, which knows no off" in harmony.notes
    r1 = encode(using(tokenizer, templates["llama-cpp-deepseek-r1"]), ["Knit!"], thinking=True)
    assert r1.detour == "thinking is on"  # it always is
    with pytest.raises(TemplateError, match="thinking needs template='chat'"):
        encode(tokenizer, ["Knit!"], template="raw", thinking=True)


def test_a_template_that_ends_behind_the_header_of_gpt_oss_leaves_no_detour(templates, tokenizer):
    harmony = templates["openai-gpt-oss-120b"]
    assert encode(using(tokenizer, harmony), ["Knit!"]).detour.startswith("an answer begins after")
    end, header = "<|start|>assistant\n{%- endif -%}", "<|channel|>final<|message|>"
    assert harmony.endswith(end)
    behind = harmony.removesuffix(end) + end.replace("\n", header + "\n")
    prompts = encode(using(tokenizer, behind), ["Knit!"])
    assert "".join(prompts.pieces[0]).endswith("<|start|>assistant" + header)
    require_answer_next(prompts, "probes")
    inside = harmony.removesuffix(end) + end.replace("\n", "<|channel|>analysis<|message|>\n")
    assert encode(using(tokenizer, inside), ["Knit!"]).detour.startswith("the prompt ends inside")


def test_a_variable_that_is_named_and_changes_nothing_is_no_switch(small):
    for template in (
        CHAT + "{% if enable_thinking is defined %}{% endif %}",
        CHAT + "{# thinking #}",
        CHAT + "{% set thinking = true %}{% if thinking %}!{% endif %}",
    ):
        assert encode(using(small, template), ["x"]).notes == ()
        with pytest.raises(TemplateError, match="no switch"):
            encode(small, ["x"], thinking=True)


def test_what_reads_the_first_token_refuses_a_thought(small):
    prompts = encode(using(small, CHAT + "<think>\n"), ["x"])
    why = "not measured, since the prompt ends inside a thought"
    with pytest.raises(TemplateError, match=why):
        score_letters(None, prompts, [Question("q", "x", ("a", "b"), 0)], small)
    with pytest.raises(TemplateError, match=why):
        continuation_ids(small, prompts, [["yes"]])
    assert prompts.select([0]).detour == prompts.detour
    require_answer_next(encode(using(small, CHAT + "<think>\n</think>"), ["x"]), "probes")


def test_the_date_is_the_same_on_every_day(small):
    dated = "{{ strftime_now('%d %b %Y') }}" + CHAT
    prompts = encode(using(small, dated), ["x"])
    assert "".join(prompts.pieces[0]).startswith("26 Jul 2024<user>")
    assert prompts.notes == ("the template asks for the date: 26 July 2024 was rendered",)


def test_of_several_templates_the_default_is_taken_and_said(small):
    small.chat_template = {"default": CHAT, "tool_use": "tools" + CHAT, "rag": "rag" + CHAT}
    prompts = encode(small, ["x"])
    assert "".join(prompts.pieces[0]) == "<user>x<assistant>"
    assert prompts.notes == ("chat template 'default' of default, rag, tool_use",)
    set_chat_template(small, "rag")
    assert "".join(encode(small, ["x"]).pieces[0]) == "rag<user>x<assistant>"
    small.chat_template = {"tool_use": CHAT, "rag": CHAT}
    with pytest.raises(TemplateError, match=re.escape("(rag, tool_use) and no default")):
        encode(small, ["x"])
    small.chat_template = 7
    with pytest.raises(TemplateError, match="is of type int, not text"):
        encode(small, ["x"])


@pytest.mark.parametrize(
    ("template", "system", "why"),
    [
        (CHAT + "\ud800", None, "holds bytes that are not UTF-8, or half a character"),
        (CHAT + b"\x80".decode("utf-8", "surrogateescape"), None, "not UTF-8"),
        ("<user><assistant>", None, "does not print the user's message"),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", None, "does not print the user"),
        ("{{ messages[-1].content }}", "be kind", "does not print a system prompt"),
        (CHAT + "{{ range(1000000007) | list }}", None, "refused the messages"),
        (CHAT + "{{ range(90000) | random }}", None, r"draws at random \(random\)"),
        (CHAT + "{{ ['x', 'x'] | random }}", None, r"draws at random \(random\)"),
        (CHAT + "{{ [['x']] | map('random') | list }}", None, r"draws at random \(random\)"),
        (CHAT + "{% if false %}{{ lipsum() }}{% endif %}", None, r"draws at random \(lipsum\)"),
        (CHAT + "{{ nothing.at.all }}", None, "'nothing' is undefined"),
        (CHAT + "{% if", None, "refused the messages"),
        (CHAT + "{{ messages.__class__.__mro__ }}", None, "unsafe"),
    ],
)
def test_what_a_template_drops_or_cannot_do_is_one_line(small, template, system, why):
    with pytest.raises(TemplateError, match=why) as caught:
        encode(using(small, template), ["x"], system=system)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "m.content[:20]",
        "m.content | upper",
        "m.content | e",
        "m.content | tojson",
        "m.content if m.content | length < 20 else '[omitted]'",
        "m.content.split('</think>')[-1]",
    ],
)
def test_a_template_that_changes_a_prompt_is_refused_with_its_number(small, content):
    template = CHAT.replace("m.content", content)
    changed = "Is <b>it</b></think> so,\nor is it not at all?"
    with pytest.raises(TemplateError, match=r"^prompt 1: the chat template does not print it as"):
        encode(using(small, template), ["\N{OBJECT REPLACEMENT CHARACTER}" * 2, changed])


def test_a_template_may_strip_what_it_prints(small):
    prompts = encode(using(small, CHAT.replace("m.content", "m.content | trim")), [" a\n"])
    assert "".join(prompts.pieces[0]) == "<user>a<assistant>"


OPENS, SHUT = "<think>\n", "<think></think>"
UNKNOWN = {
    "enable_reasoning": "{% if enable_reasoning %}" + OPENS + "{% else %}" + SHUT + "{% endif %}",
    "think": "{% if think %}" + OPENS + "{% endif %}",
    "no_think": "{% if no_think %}" + SHUT + "{% endif %}",
    "disable_thinking": "{% if not disable_thinking %}" + OPENS + "{% endif %}",
    "use_cot": "{% if use_cot is not defined or use_cot %}" + OPENS + "{% endif %}",
    "fast": "{% if not fast %}" + OPENS + "{% endif %}",  # nothing in its name says so
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_switch_under_an_unknown_name_is_found_by_what_it_does(small, name):
    off, on = (
        encode(using(small, CHAT + UNKNOWN[name]), ["x"], thinking=state) for state in (False, True)
    )
    assert off.notes == (f"thinking=off through the template's {name}",) and off.detour == ""
    assert "".join(off.pieces[0]) in {"<user>x<assistant>", "<user>x<assistant>" + SHUT}
    assert off.digest != on.digest


def test_every_switch_that_does_something_is_set(small):
    cosmetic = "{% if enable_thinking is defined and enable_thinking %}[T]{% endif %}"
    effort = "{% if reasoning_effort != 'none' %}" + OPENS + "{% else %}" + SHUT + "{% endif %}"
    off = encode(using(small, CHAT + cosmetic + effort), ["x"])
    assert "".join(off.pieces[0]) == "<user>x<assistant>" + SHUT
    assert off.detour == "" and off.notes == (
        "thinking=off through the template",
        "thinking=off through the template's reasoning_effort",
    )
    on = encode(small, ["x"], thinking=True)
    assert "".join(on.pieces[0]) == "<user>x<assistant>[T]" + OPENS


def test_a_variable_of_thought_whose_off_is_not_known_is_said(small):
    style = "{% if thought_style %}Think aloud.{% endif %}"
    assert encode(using(small, CHAT + style), ["x"]).notes == (
        "thought_style: as the template has it, no switch known here",
    )


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP.replace("BODY", ""), "takes longer than 1 s"),
        (LOOP.replace("BODY", "x" * 100), "takes longer than 1 s|needs more than 1 GB"),
        ("{{ 'x' * 10000000000 }}", "needs more than 1 GB of memory"),
        ("{{ 'x' * 5000000 }}", "writes 5,000,018 characters; 4,000,000 are the limit"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
    ],
)
def test_templates_have_limits_of_time_memory_and_output(small, monkeypatch, template, why):
    monkeypatch.setattr(template_process, "SECONDS", 1.0)
    began, caught = time.monotonic(), []

    def ask():
        try:
            encode(using(copy.deepcopy(small), CHAT + template), ["x"])
        except TemplateError as error:
            caught.append(str(error))

    thread = threading.Thread(target=ask)  # a limit that needs the main thread is none
    thread.start()
    thread.join()
    assert re.search(why, caught[0]), caught
    assert time.monotonic() - began < 20
    assert encode(using(small, CHAT), ["x"]).texts == ("x",)  # the next one is rendered
