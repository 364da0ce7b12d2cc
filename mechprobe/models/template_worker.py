"""The process in which chat templates are rendered: one job a line on stdin, one answer on stdout.

A template is a program of whoever published the checkpoint, and may compute for ever or fill the
memory in a single operation. Only a process of its own can be ended then. It stands alone: the
alarm that ends it must not end anything else.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes beyond what transformers itself takes."""
CHARACTERS = 4_000_000
"""Of a rendered prompt."""
DATE = datetime.datetime(2024, 7, 26, 12, 0, 0)
"""What a template that asks for the time is told, so that prompts are the same on every day."""


class _Clock(datetime.datetime):
    asked = False

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        cls.asked = True
        return DATE


def _limit_memory() -> None:
    """Let an allocation beyond the limit fail; where the system has no such limit, none is set."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        taken = pages * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))


def _render(job: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils import chat_template_utils

    _Clock.asked = False
    asked, draws = _read(job["template"])
    if draws:
        return {"limit": f"draws at random ({draws})"}
    rendered, _ = chat_template_utils.render_jinja_template(
        [job["messages"]],
        chat_template=job["template"],
        add_generation_prompt=job["add_generation_prompt"],
        **job["variables"],
    )
    text = rendered[0]
    if len(text) > CHARACTERS:
        return {"limit": f"writes {len(text):,} characters; {CHARACTERS:,} are the limit"}
    return {"text": text, "clock": _Clock.asked, "asks": asked}


@lru_cache
def _read(template: str) -> tuple[list[str], str]:
    """Variables that a template asks for and does not set, sorted, and by what it draws at random.

    A rendering that is another each time would be caught by chance alone.
    """
    import jinja2.meta
    from jinja2 import nodes
    from transformers.utils import chat_template_utils

    environment = chat_template_utils._compile_jinja_template(template).environment
    tree = environment.parse(template)
    filters = {found.name for found in tree.find_all(nodes.Filter)}
    for mapped in tree.find_all(nodes.Filter):  # map("random")
        if mapped.name == "map" and mapped.args and isinstance(mapped.args[0], nodes.Const):
            filters.add(mapped.args[0].value)
    names = {found.name for found in tree.find_all(nodes.Name)}
    draws = filters & {"random"} | names & {"lipsum"}
    return sorted(jinja2.meta.find_undeclared_variables(tree)), ", ".join(sorted(draws))


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _Clock
    _limit_memory()
    for line in sys.stdin:
        job = json.loads(line)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, job["seconds"])  # ends this process
        try:
            answer = _render(job)
        except MemoryError:
            answer = {"limit": f"needs more than {MEMORY >> 30} GB of memory"}
        except Exception as error:  # noqa: BLE001 - a template is a program and may raise anything
            lines = str(error).splitlines()
            answer = {"error": lines[0] if lines else type(error).__name__}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
