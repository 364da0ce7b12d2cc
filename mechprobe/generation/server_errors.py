"""What is taken over from a server: of its errors never the prose, of its texts never the key.

A message may quote the key, the request, or what the model had generated before it failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KNOWN = tuple(
    (re.compile(theirs, re.IGNORECASE), ours)
    for theirs, ours in (
        (r"context (length|size|window)|too long|too many tokens", "it is about the length"),
        (r"temperature", "it is about the temperature"),
        (r"max_(completion_)?tokens", "it is about the limit of tokens"),
        (r"loading model", "the model is still being loaded"),
        (r"model.{0,80}(not found|not exist|unknown)|unknown model", "there is no such model"),
        (r"quota|billing|credit", "it is about the account's credit"),
        (r"rate.limit|too many requests", "it is about the rate of requests"),
        (r"api.key|unauthori[sz]ed|authentication", "it is about the key"),
    )
)
"""What is known of servers' messages, and what is said of it; the first that fits."""
_NAME = re.compile(r"[A-Za-z][A-Za-z_]{0,39}")
_MODEL = re.compile(r"[ -~]{1,200}")
"""One line of plain ASCII."""
BLANK = "[key]"
"""What stands where a server quoted the key."""
_TEXT_PART = 12
"""Characters in a row that a text may not share with the key."""
_KEY_PART = 8
"""Characters in a row that a name may not share with the key."""


def without_key(value: Any, key: str) -> Any:
    """Blank out the key wherever a server quotes it; everything of a reply goes through here.

    A key of 12 characters or more is blanked by its parts of 12, in any case, so that half a key is
    none either; a shorter one as a word of its own, since it may be a part of ordinary words.

    Args:
        value: Parsed JSON: texts in lists and objects, names of fields included.
        key: That was sent with the request; empty where there was none.

    Returns:
        The same with `[key]` in those places.
    """
    if not key:
        return value
    if isinstance(value, str):
        return _blank(value, key)
    if isinstance(value, list):
        return [without_key(part, key) for part in value]
    if isinstance(value, dict):
        return {_blank(name, key): without_key(part, key) for name, part in value.items()}
    return value


def _blank(text: str, key: str) -> str:
    if len(text) < min(len(key), _TEXT_PART):
        return text
    if len(key) < _TEXT_PART:
        return re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", BLANK, text)
    parts = (re.escape(key[i : i + _TEXT_PART]) for i in range(len(key) - _TEXT_PART + 1))
    starts = re.compile("|".join(f"(?={part})" for part in parts), re.IGNORECASE)
    kept: list[str] = []
    end = 0
    for found in starts.finditer(text):
        if found.start() > end or not kept:
            kept += [text[end : found.start()], BLANK]
        end = found.start() + _TEXT_PART
    return "".join([*kept, text[end:]])


def said_by(body: object, key: str) -> str:
    """What a server's error says, in words of ours: a message may hold any text, the key too.

    Only its type and code are shown, where they are names and hold no part of the key.

    Args:
        body: Of the error, as parsed.
        key: That was sent with the request; empty where there was none.
    """
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    fields: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {"message": inner}
    names = [shown_name(fields.get(part), key) for part in ("type", "code")]
    message = fields.get("message")
    known = (ours for theirs, ours in _KNOWN if isinstance(message, str) and theirs.search(message))
    return ", ".join(dict.fromkeys(filter(None, (*names, next(known, "")))))


def shown_name(value: object, key: str = "") -> str:
    """A short name from a server, such as an error's type; empty if it may be anything else.

    Args:
        value: What the server sent.
        key: No part of it is ever a name.
    """
    return _without(key, value, _NAME)


def shown_model(value: object, key: str = "") -> str:
    """A model's name from a server, as `shown_name` shows a name; one line of plain ASCII."""
    return _without(key, value, _MODEL)


def _without(key: str, value: object, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        return ""
    secret = key.lower()
    parts = {secret[i : i + _KEY_PART] for i in range(max(1, len(key) - _KEY_PART + 1))} - {""}
    return "" if any(part in value.lower() for part in parts) else value
