"""xllamacpp's server in this process: how it is opened, and how its answers are collected."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from mechprobe.errors import GenerationError
from mechprobe.generation.threads import (
    MEASURED_PROMPTS,
    MEASURED_STEPS,
    MEASURED_TOKENS,
    ThreadChoice,
)
from mechprobe.models.gguf_file import GgufFile
from mechprobe.models.llamacpp import anchor, open_server

CONTEXT_STEP: Final = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this."""
_FEW_WEIGHTS: Final = 1 << 20
"""Bytes below which a second thread costs more in barriers than it brings."""
_MANY_WEIGHTS: Final = 2 << 30
"""Bytes above which the caches of 16 sequences would take gigabytes."""
_WITH_IDS: Final = {"return_tokens": True, "verbose": True}


def original_context(file: GgufFile) -> tuple[int, int]:
    """Return the original context of a LongRoPE file, and the largest that takes short factors.

    Contexts have multiples of 256 tokens. Both are 0 where the file has no such factors.
    """
    if "rope_factors_long.weight" not in file.tensors:
        return 0, 0
    trained = int(file.get("context_length", 0))
    original = int(file.get("rope.scaling.original_context_length", trained))
    return original, original // CONTEXT_STEP * CONTEXT_STEP


def threads_for(path: Path, asked: int | None) -> ThreadChoice:
    """As many as asked for; else one for a small file, and what is fastest for others.

    `OMP_NUM_THREADS` is the most that are tried.
    """
    import psutil

    if asked is None and path.stat().st_size < _FEW_WEIGHTS:
        asked = 1
    most = int(psutil.cpu_count(logical=False) or 1)
    named = os.environ.get("OMP_NUM_THREADS", "")
    return ThreadChoice(asked, min(most, int(named)) if named.isdecimal() and int(named) else most)


def slots_for(path: Path, asked: int | None) -> int:
    """As many as asked for; else 16, and 8 for a large file."""
    if asked is not None:
        return asked
    return 8 if path.stat().st_size > _MANY_WEIGHTS else 16


def message(answer: dict[str, Any]) -> str:
    """What llama.cpp says of a failure, its first line."""
    error = answer.get("error", answer)
    text = error.get("message", error) if isinstance(error, dict) else error
    return (str(text).splitlines() or ["no message"])[0]


class Stream:
    """Collects the ids of several answers, step by step as llama.cpp sends them."""

    def __init__(self, answers: int, finished: Callable[[], None] = lambda: None) -> None:
        self._finished = finished
        self.ids: list[list[int]] = [[] for _ in range(answers)]
        self.steps = [0] * answers
        self.reasons = ["length"] * answers
        self.error: str | None = None

    def receive(self, event: dict[str, Any] | None) -> bool:
        """One event; returns whether llama.cpp may stop sending."""
        if not event:
            return False
        if "choices" not in event:
            self.error = message(event)
            return True
        choice, detail = event["choices"][0], event["__verbose"]
        number = int(choice["index"])
        self.ids[number] += map(int, detail["tokens"])
        self.steps[number] = int(detail["tokens_predicted"])
        if choice["finish_reason"] is not None:
            self.reasons[number] = str(choice["finish_reason"])
            self._finished()
        return False

    def lost(self, number: int) -> bool:
        """Whether llama.cpp predicted more tokens for an answer than it sent."""
        return len(self.ids[number]) != self.steps[number]


class SlotServer:
    """A GGUF file on llama.cpp with a number of slots, each of which holds one sequence."""

    def __init__(self, file: GgufFile, *, context: int, parallel: int, threads: int) -> None:
        """Load the file.

        Args:
            file: What to load.
            context: Tokens for each sequence.
            parallel: Slots.
            threads: Of the CPU.

        Raises:
            GenerationError: llama.cpp cannot load it.
        """
        self.anchor = anchor(file)
        self.context = context
        self.threads = threads
        self._path = file.path
        self._parallel = parallel
        try:
            self._server = open_server(
                file.path, context=context, parallel=parallel, threads=threads
            )
        except (RuntimeError, ValueError) as error:
            raise GenerationError(
                f"{file.path}: llama.cpp cannot load it (architecture "
                f"{file.architecture!r}, {context} tokens of context for each of "
                f"{parallel} sequences): {str(error).splitlines()[0]}"
            ) from error
        # A server that is closed before its loop has begun never ends; one answer says it has.
        self.settle()

    def settle(self) -> None:
        """Use every slot once: they are empty then, and met in order by what follows.

        llama.cpp hands out the slot that was idle longest; another order is another batch. As many
        prompts of one token as there are slots end in one step, and free the slots in order.
        """
        self.answer([[self.anchor]] * self._parallel, max_tokens=1)

    def body(self, prompts: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
        """A request. It names its samplers alone: a file may carry penalties of its own."""
        return {
            "prompt": [list(map(int, prompt)) for prompt in prompts],
            "temperature": 0.0,
            "samplers": ["temperature"],
            "cache_prompt": False,
            **options,
        }

    def answer(self, prompts: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
        """A whole reply.

        Raises:
            GenerationError: llama.cpp failed.
        """
        answer: dict[str, Any] = self._server.handle_completions(self.body(prompts, **options))
        if "choices" not in answer:
            raise GenerationError(f"{self._path}: llama.cpp: {message(answer)}")
        return answer

    def rate(self, prompts: Sequence[Sequence[int]]) -> float:
        """Tokens per second, read and written, at the beginnings of the first prompts."""
        few = [prompt[:MEASURED_TOKENS] for prompt in prompts[:MEASURED_PROMPTS]]
        begun = time.perf_counter()
        self.answer(few, max_tokens=MEASURED_STEPS, ignore_eos=True)
        seconds = time.perf_counter() - begun
        return (sum(map(len, few)) + MEASURED_STEPS * len(few)) / seconds

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        answers: int,
        finished: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> Stream:
        """The ids of one request's answers: one for each prompt, or several for a single one.

        Args:
            prompts: Token ids.
            answers: How many there will be.
            finished: Called at the end of each.
            options: Of the request.

        Raises:
            GenerationError: llama.cpp failed.
        """
        stream = Stream(answers, finished)
        request = self.body(prompts, stream=True, **options, **_WITH_IDS)
        self._server.handle_completions(request, stream.receive)
        if stream.error is not None:
            raise GenerationError(f"{self._path}: llama.cpp: {stream.error}")
        for number in range(answers):
            if stream.lost(number):
                # Steps that end inside a character are held back and their ids never sent; asked
                # alone and in one piece, llama.cpp gives them all.
                alone = dict(options)
                if alone.pop("n", None) is not None:
                    alone["seed"] += number
                prompt = prompts[number if len(prompts) > 1 else 0]
                answer = self.answer([prompt], **alone, **_WITH_IDS)
                stream.ids[number] = [int(i) for i in answer["__verbose"]["tokens"]]
                stream.reasons[number] = str(answer["choices"][0]["finish_reason"])
        return stream
