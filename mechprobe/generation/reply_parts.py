"""The text and the thought of a server's message, in whichever parts it sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_REASONING: Final = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""Fields of a message in which servers put a thought apart from the answer."""
_THOUGHTS: Final = ("thinking", "reasoning", "summary")
"""Fields of a part that hold a thought, or more parts of one."""
_SILENT: Final = ("reference",)
"""Types of parts that say nothing themselves."""
_HIDDEN: Final = "(a thought that the server does not show)"


def answer_in(message: Mapping[str, Any]) -> Any:
    """What a message says; None, or what is no text, where it says nothing.

    Args:
        message: As sent. Its content is a text or, as Mistral's API sends it, a list of parts.

    Raises:
        ValueError: A part is of a kind that holds no text.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return content
    return "".join(_said(part) for part in content) if content else None


def thought_in(message: Mapping[str, Any]) -> str:
    """What a message thinks, apart from its answer; empty where it tells nothing of it."""
    found = (_thought(message.get(name)) for name in _REASONING)
    apart = next((thought for thought in found if thought), "")
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return apart or "".join(_thought(part) for part in parts if _is_thought(part))


def unseen_thought(usage: Mapping[str, Any]) -> str:
    """What stands for a thought of which a server tells no more than its tokens; else empty.

    Args:
        usage: Of the reply, as sent; OpenAI's API counts in `completion_tokens_details`.
    """
    details = usage.get("completion_tokens_details")
    told = [usage, details] if isinstance(details, Mapping) else [usage]
    counts = [one.get("reasoning_tokens") for one in told]
    return _HIDDEN if any(type(count) is int and count > 0 for count in counts) else ""


def _is_thought(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind.startswith(("thinking", "reasoning", "redacted_thinking"))


def _said(part: Any) -> str:
    if _is_thought(part):
        return ""
    if isinstance(part, str):
        return part
    texts = (part.get(name) for name in ("text", "refusal")) if isinstance(part, Mapping) else ()
    text = next((text for text in texts if isinstance(text, str)), None)
    if text is not None:
        return text
    if isinstance(part, Mapping) and part.get("type") in _SILENT:
        return ""
    raise ValueError("a part without a text")


def _thought(found: Any) -> str:
    """A thought as text, parts or parts of parts; what is encrypted is one too."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return "".join(map(_thought, found))
    if not isinstance(found, Mapping):
        return ""
    told = "".join(_thought(found.get(name)) for name in ("text", *_THOUGHTS))
    return told or (_HIDDEN if isinstance(found.get("data"), str) else "")
