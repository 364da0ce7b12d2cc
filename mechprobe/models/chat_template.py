"""What a chat template is before it renders prompts: which one, its switches, what it leaves out.

A template that ignores what it is asked for does so silently. Here it is rendered with a mark in
place of the message, with each switch both ways, and what comes out is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import TemplateError
from mechprobe.models.template_process import Rendered, render
from mechprobe.models.template_worker import DATE
from mechprobe.models.thoughts import open_marker, split
from mechprobe.textfiles import is_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK: Final = "\N{OBJECT REPLACEMENT CHARACTER}"
_ANSWER: Final = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"
SWITCHES: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("enable_thinking", False, True),
    ("thinking", False, True),
    ("thinking_mode", "disabled", "enabled"),
    ("thinking_option", "off", "on"),
    ("reasoning_mode", "/no_think", "/think"),
    ("reasoning", False, True),
    ("thinking_budget", 0, -1),
    ("reasoning_effort", "no_think", "high"),
    ("reasoning_effort", "none", "high"),
)
"""Variables by which templates let thinking be switched: name, the value for off, the one for on.
One that is off by a text is used only where the template spells it."""
EFFORTS: Final = ("reasoning_effort", "thinking_effort", "reasoning_strength", "thinking_budget")
"""Variables that set how much is thought, which may have no value for not at all."""
_OF_THOUGHT: Final = re.compile(r"think|thought|reason|(?:^|_)cot(?:_|$)", re.IGNORECASE)
_OWN: Final = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""What transformers gives to every template."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A tokenizer's template with everything but the message decided."""

    source: str
    variables: Mapping[str, Any]
    """What it may read beside the messages: special tokens and switches."""
    system: str | None
    notes: tuple[str, ...] = ()
    """What was chosen, and what the template does that its user should know."""
    detour: str = ""
    """Why the first token of an answer is not the first generated one; empty where it is."""

    def render(self, text: str) -> str:
        """One user message up to where the answer begins.

        Raises:
            TemplateError: The template refused it, or came to a limit.
        """
        return self._with({}, text).text

    def _with(self, switches: Mapping[str, Any], text: str, answer: str | None = None) -> Rendered:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": text})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return render(
            self.source,
            messages,
            {**self.variables, **switches},
            add_generation_prompt=answer is None,
        )


def read_chat_template(
    tokenizer: PreTrainedTokenizerBase, *, system: str | None = None, thinking: bool = False
) -> ChatTemplate:
    """Look at a tokenizer's chat template and decide how it is used.

    Args:
        tokenizer: Its owner.
        system: A system prompt; None leaves the template's own.
        thinking: Whether a reasoning model is to think.

    Raises:
        TemplateError: There is none, it cannot be rendered, it drops the message or the system
            prompt, renders the same message in two ways, or has no switch to turn thinking on.
    """
    source, note = _chosen(tokenizer.chat_template)
    if not is_text(source):
        raise TemplateError(
            "the tokenizer's chat template is no text: it holds bytes that are not UTF-8, or half "
            "a character; pass another one (--chat-template FILE)"
        )
    bare = ChatTemplate(source, dict(tokenizer.special_tokens_map), system)
    probe = bare._with({}, _MARK)
    _check(bare, probe.text)
    notes = [note] if note else []
    if probe.clock:
        notes.append(f"the template asks for the date: {DATE:%d %B %Y} was rendered")
    switch, said = _switches(bare, thinking, probe)
    notes += said
    ready = ChatTemplate(source, {**bare.variables, **switch}, system)
    detour = "thinking is on" if thinking else _detour(ready)
    if detour and not thinking:
        notes.append(detour)
    return ChatTemplate(source, ready.variables, system, tuple(notes), detour)


def _chosen(template: Any) -> tuple[str, str]:
    """The text of the template that is used, and what to say of it where there are several."""
    if not template:
        raise TemplateError(
            "the tokenizer has no chat template; pass one (--chat-template FILE), "
            "or use the text as it is (--template raw)"
        )
    if isinstance(template, str):
        return template, ""
    if not isinstance(template, Mapping) or not all(isinstance(t, str) for t in template.values()):
        raise TemplateError(
            f"the tokenizer's chat template is of type {type(template).__name__}, not text; "
            "pass one (--chat-template FILE)"
        )
    names = ", ".join(sorted(template))
    if "default" not in template:
        raise TemplateError(
            f"the tokenizer has several chat templates ({names}) and no default; choose one "
            "(--chat-template NAME)"
        )
    return template["default"], f"chat template 'default' of {names}"


def _check(template: ChatTemplate, probe: str) -> None:
    """Refuse a template that drops what it is given, or is no function of it."""
    if _MARK not in probe:
        raise TemplateError(
            "the chat template does not print the user's message; pass another one "
            "(--chat-template FILE)"
        )
    if template.system and template.system.strip() not in probe:
        raise TemplateError("the chat template does not print a system prompt; leave it out")
    if template._with({}, _MARK).text != probe:
        raise TemplateError(
            "the chat template renders the same message in two ways; pass another one "
            "(--chat-template FILE)"
        )


def _switches(
    template: ChatTemplate, thinking: bool, probe: Rendered
) -> tuple[dict[str, Any], list[str]]:
    """The switches that this template has, set, and what to say of them.

    Args:
        template: To be looked at.
        thinking: Whether it is to be on.
        probe: What it makes of a mark.

    Raises:
        TemplateError: Thinking is asked for and there is none.
    """
    state = "on" if thinking else "off"
    switches: dict[str, Any] = {}
    for name, off, on in SWITCHES:
        if name not in switches and _works(template, name, off, on):
            switches[name] = on if thinking else off
    always = open_marker(probe.text) is not None
    others, unclear = _others(template, probe, everything=always and not switches)
    switches |= {name: on if thinking else off for name, (off, on) in others.items()}
    through = [
        "the template" if name == "enable_thinking" else f"the template's {name}"
        for name in switches
    ]
    notes = [f"thinking={state} through {one}" for one in through]
    notes += [f"{name}: as the template has it, no switch known here" for name in unclear]
    if switches:
        return switches, notes
    known = [name for name in EFFORTS if _named(template.source, name)]
    if thinking and not always:
        more = f"; it knows {', '.join(known)}" if known else ""
        raise TemplateError(
            f"the chat template has no switch that turns thinking on{more}; leave thinking out"
        )
    return {}, notes + [f"{name}: as the template has it, which knows no off" for name in known]


def _others(
    template: ChatTemplate, probe: Rendered, *, everything: bool
) -> tuple[dict[str, tuple[bool, bool]], list[str]]:
    """Switches under names that are not in the table, and variables that may be ones.

    A variable is a switch if one of true and false leaves the prompt in a thought, or if one
    writes an empty thought that the other does not: then it is known which of them is off.

    Args:
        template: To be looked at.
        probe: What it makes of a mark.
        everything: Look at all that it reads, not only at names that speak of thought.

    Returns:
        The values for off and on, by name; and names of thought that change what is rendered.
    """
    taken = {*(name for name, *_ in SWITCHES), *EFFORTS, *template.variables, *_OWN}
    found: dict[str, tuple[bool, bool]] = {}
    unclear = []
    for name in probe.asks:
        speaks = _OF_THOUGHT.search(name) is not None
        if name in taken or not (speaks or everything):
            continue
        try:
            false, true = (template._with({name: value}, _MARK).text for value in (False, True))
        except TemplateError:
            continue
        if _MARK not in false or _MARK not in true:
            continue
        for thinks in (_opens, lambda text: not _closed(text)):
            if thinks(false) != thinks(true):
                found[name] = (thinks(false), thinks(true))
                break
        else:
            unclear += [name] if speaks and false != true else []
    return found, unclear


def _opens(text: str) -> bool:
    return open_marker(text) is not None


def _closed(text: str) -> bool:
    """Whether a prompt ends after a thought."""
    parts = split(text.rpartition(_MARK)[2])
    return parts.thought is not None and not (parts.answer or "").strip()


def _named(source: str, name: str) -> bool:
    return re.search(rf"(?<![\w.'\"]){name}(?![\w'\"])", source) is not None


def _works(template: ChatTemplate, name: str, off: Any, on: Any) -> bool:
    """Whether a switch changes what is rendered."""
    if not _named(template.source, name):
        return False
    if (
        isinstance(off, str)
        and f"'{off}'" not in template.source
        and (f'"{off}"' not in template.source)
    ):
        return False
    try:
        rendered = {template._with({name: value}, _MARK).text for value in (off, on)}
    except TemplateError:
        return False
    return len(rendered) == 2


def _detour(template: ChatTemplate) -> str:
    """Why the next token after the prompt is not the first of an answer; empty where it is.

    The template says so itself: by a thought that the prompt ends in, or by what it prints between
    the beginning of an answer and its text.
    """
    probe = template.render(_MARK)
    if _opens(probe):
        return (
            "the prompt ends inside a thought, which neither true nor false for any variable of "
            "the template closes"
        )
    try:
        turn = template._with({}, _MARK, _ANSWER).text
    except TemplateError:
        return ""  # a template may refuse a conversation that ends with an answer
    if not turn.startswith(probe):
        return ""
    header = turn[len(probe) :].partition(_ANSWER)[0].strip()
    return (
        f"an answer begins after {header!r}, which the model has to write first" if header else ""
    )
