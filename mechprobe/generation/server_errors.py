"""What is shown of a server's errors: never its own prose.

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
_KEY_PART = 8
"""Characters in a row that a name may not share with the key."""


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
