"""Advice in messages to use an option, kept to the options that the command has.

Messages of the rooms below are raised under many commands and in notebooks. They name an option in
brackets, `(--tokenizer FOLDER)`, and the brackets go where the command lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BRACKETED = re.compile(r"\s*\((--[a-z][a-z-]*)(?: [\w.]+)?\)")


def options_of(command: Any, arguments: Sequence[str]) -> frozenset[str]:
    """Long options of the command that arguments lead to.

    Args:
        command: The root, as click sees it.
        arguments: Of the command line.
    """
    for word in arguments:
        inner = getattr(command, "commands", {})
        if not inner or word.startswith("-"):
            break
        command = inner.get(word, command)
    names = (name for one in command.params for name in (*one.opts, *one.secondary_opts))
    return frozenset(name for name in names if name.startswith("--"))


def kept_advice(message: str, options: frozenset[str]) -> str:
    """A message without bracketed options that a command lacks."""
    return BRACKETED.sub(lambda found: found[0] if found[1] in options else "", message)
