"""Chat templates rendered within limits of time, memory and output, by a process of their own."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import TemplateError

SECONDS = 10.0
"""For one prompt."""
_WORKER = Path(__file__).with_name("template_worker.py")
_lock = threading.Lock()
_processes: dict[int, subprocess.Popen[str]] = {}
"""By the process that started it: a fork must not share its parent's."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template made of a conversation."""

    text: str
    clock: bool
    """Whether it asked for the time."""
    asks: tuple[str, ...] = ()
    """Variables that the template reads and does not set, sorted."""


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Render a conversation as transformers does.

    Args:
        template: Its text.
        messages: Each with `role` and `content`.
        variables: What the template may read beside them: special tokens and switches.
        add_generation_prompt: Begin the answer.

    Raises:
        TemplateError: The template refused the messages, failed, or came to a limit.
    """
    job = {
        "template": template,
        "messages": list(messages),
        "variables": {name: _plain(value) for name, value in variables.items()},
        "add_generation_prompt": add_generation_prompt,
        "seconds": SECONDS,
    }
    with _lock:
        answer = _ask(json.dumps(job))
    if "limit" in answer:
        raise TemplateError(
            f"the chat template {answer['limit']}; pass another one (--chat-template FILE)"
        )
    if "error" in answer:
        raise TemplateError(f"the chat template refused the messages: {answer['error']}")
    return Rendered(answer["text"], answer["clock"], tuple(answer["asks"]))


def _plain(value: Any) -> Any:
    """A switch as it is; a special token as its text."""
    return value if value is None or isinstance(value, bool | int | list) else str(value)


def _ask(job: str) -> dict[str, Any]:
    process = _processes.get(os.getpid())
    if process is None or process.poll() is not None:
        process = _processes[os.getpid()] = _start()
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(job + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    except BaseException:  # interrupted: its answer would be taken for the next one's
        _stop()
        raise
    if line:
        found: dict[str, Any] = json.loads(line)
        return found
    code = process.wait()
    _stop()
    late = hasattr(signal, "SIGALRM") and code == -signal.SIGALRM
    why = f"takes longer than {SECONDS:g} s" if late else f"ends its process with code {code}"
    return {"limit": why}


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


@atexit.register
def _stop() -> None:
    process = _processes.pop(os.getpid(), None)
    if process is not None:
        process.kill()
        process.communicate()
