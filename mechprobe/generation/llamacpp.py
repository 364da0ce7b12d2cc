"""llama.cpp in this process: text and next-token log-probabilities of a GGUF file.

Prompts arrive as token ids, so nothing here adds a BOS or cuts text. A call is reproducible bit
for bit: its prompts enter llama.cpp as one list and meet emptied slots in a fixed order, and a slot
keeps what the next prompt has in common with the last one of the same call. A prompt alone and the
same prompt among others may still differ: batches of other widths take other kernels, and because
k-quant kernels round activations to 8 bits, a last-bit difference can flip a rounding (up to 0.1
nats were seen on random weights). `parallel=1` reads every prompt from its beginning, and so makes
it independent of its companions.

Sampled answers are drawn prompt by prompt, the samples of one prompt side by side in the slots
after one reading of it; so nothing but the prompt and the number of its samples shapes a batch.

`fast=True` gives that up: prompts of a sampled call share the slots in whatever order they come
free, and a slot keeps what the next prompt has in common with the last one. Chance is still seeded
by prompt and sample, but a rerun may batch otherwise, and where two tokens are nearly equal the
text may differ. Greedy calls gain nothing by it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import GenerationError, NumericsError
from mechprobe.generation.answer_text import completion
from mechprobe.generation.base import (
    Completion,
    FloatArray,
    Sampling,
    StopReason,
    repeated,
    stream_seed,
)
from mechprobe.generation.llamacpp_server import (
    CONTEXT_STEP,
    SlotServer,
    original_context,
    slots_for,
    threads_for,
)
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_info import quant_info
from mechprobe.models.gguf_vocabulary import check_vocabulary, vocabulary_notes
from mechprobe.models.llamacpp import require_sound
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBABILITIES_AT_ONCE: Final = 400_000
_SEEDS: Final = 1 << 31
"""llama.cpp's seeds have 32 bits, the largest of which means a random one."""
FAST_NOTE: Final = "fast: reruns may differ in text where two tokens are nearly equal"


def _normalised(logprobs: FloatArray) -> FloatArray:
    """llama.cpp sums probabilities in float32 and is off by up to 2e-5; rows made to sum to 1."""
    exact = logprobs.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return exact.astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Asked:
    """How prompts are to be answered."""

    new: int
    sampling: Sampling | None
    finished: Callable[[], None]
    """Called at the end of each answer."""


class LlamaCppEngine:
    """A GGUF file on llama.cpp, through xllamacpp; closed after use."""

    name = "llama.cpp"

    def __init__(
        self,
        gguf: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n_ctx: int | None = None,
        parallel: int | None = None,
        threads: int | None = None,
        fast: bool = False,
    ) -> None:
        """Load the file and check that the tokenizer is its own.

        Args:
            gguf: A `.gguf` file.
            tokenizer: What renders the prompts; decodes the answers.
            n_ctx: Tokens of context for each sequence; None fits the longest prompt.
            parallel: Sequences decoded together; None takes 16, and 8 for files above 2 GiB, whose
                caches are large.
            threads: None takes one for files below 1 MiB; else what is fastest on the first
                prompts of a long call, of all cores, half of them, and so on.
            fast: Reruns need not give identical text; see above.

        Raises:
            CheckpointError: The file is broken, or llama.cpp dies of it; PrecisionError where it is
                mislabelled.
            VocabularyError: The tokenizer belongs to another model.
            GenerationError: llama.cpp cannot load the file.
        """
        if parallel is not None and parallel < 1:
            raise GenerationError(f"parallel is {parallel}; at least 1 is needed")
        self._file = read_gguf(gguf)
        quant_info(self._file)
        check_vocabulary(gguf, tokenizer)
        self._tokenizer = tokenizer
        self._parallel = slots_for(gguf, parallel)
        self._choice = threads_for(gguf, threads)
        self._fixed = n_ctx
        self._original, self._short = original_context(self._file)
        self._limit = int(self._file.get("context_length", 0)) or (1 << 30)
        self._vocabulary = len(self._file.metadata["tokenizer.ggml.tokens"])
        self._fast = fast
        self.notes: tuple[str, ...] = (
            *([FAST_NOTE] if fast else []),
            *vocabulary_notes(self._file),
        )
        if n_ctx and self._original:
            side = "long" if n_ctx > self._short else "short"
            self.notes += (f"n_ctx {n_ctx}: LongRoPE's {side} factors for every prompt",)
            self._short = 0
        self._probed = False
        self._slots: SlotServer | None = None
        require_sound(self._file, threads=self.threads)
        self._open(n_ctx or self._context_for(CONTEXT_STEP))

    def _context_for(self, needed: int) -> int:
        return min(-(-needed // CONTEXT_STEP) * CONTEXT_STEP, self._limit)

    def _contexts(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        """Prompts, by number, that are read in one context.

        llama.cpp takes LongRoPE's long factors for every prompt once the context, not the prompt,
        is longer than the original one; transformers once prompt and answer are.
        """
        short = [n for n, row in enumerate(prompts) if len(row) + new <= self._short]
        long = [n for n, row in enumerate(prompts) if len(row) + new > self._short]
        if self._short and any(len(prompts[n]) <= self._original for n in long):
            note = (
                f"prompts that do not fit into {self._short} tokens with their answers were read "
                "with LongRoPE's long factors from their beginning; transformers takes those past "
                f"{self._original} tokens"
            )
            self.notes = tuple(dict.fromkeys((*self.notes, note)))
        return [numbers for numbers in (short, long) if numbers]

    @property
    def threads(self) -> int:
        """Of the CPU, in the last call."""
        return self._choice.count

    def _open(self, context: int, threads: int | None = None) -> None:
        self.close()
        self._slots = SlotServer(
            self._file, context=context, parallel=self._parallel, threads=threads or self.threads
        )

    def _choose_threads(self, prompts: Sequence[Sequence[int]]) -> None:
        context = self._opened().context

        def rate(threads: int) -> float:
            if self._opened().threads != threads:
                self._open(context, threads)
            return self._opened().rate(prompts)

        self._choice.measure(rate)
        if self._opened().threads != self.threads:
            self._open(context)

    def _make_room(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Check the ids, and reopen with a larger context where the longest prompt needs one."""
        context = self._opened().context
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise GenerationError(f"prompt {number} is empty; llama.cpp needs one token")
            if min(prompt) < 0 or max(prompt) >= self._vocabulary:
                raise GenerationError(
                    f"prompt {number} holds id {max(prompt)} and {self._file.path} has "
                    f"{self._vocabulary} tokens"
                )
        needed = max(map(len, prompts)) + new
        room = self._fixed or self._limit
        if needed > room:
            raise GenerationError(
                f"{self._file.path}: the longest prompt and {new} new tokens need {needed} tokens "
                f"of context and there are {room}"
            )
        if needed > context or needed <= self._short < context:
            self._open(self._context_for(needed))

    def _opened(self) -> SlotServer:
        if self._slots is None:
            raise GenerationError(f"{self._file.path}: the engine is closed")
        return self._slots

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Completions of token-id prompts, in the order given; greedy without `sampling`.

        Raises:
            GenerationError: An id or a length does not fit, or llama.cpp failed.
            NumericsError: The model's logits are not finite.
        """
        if sampling is not None and sampling.greedy:
            alone = self.generate(prompts, max_new_tokens=max_new_tokens, progress=progress)
            return repeated(alone, sampling)
        done, total = itertools.count(1), len(prompts) * (sampling.samples if sampling else 1)

        def finished() -> None:
            progress(next(done), total)

        found: dict[int, list[Completion]] = {}
        for numbers in self._contexts(prompts, max_new_tokens):
            rows = [prompts[n] for n in numbers]
            answers = self._answers(rows, _Asked(max_new_tokens, sampling, finished))
            found.update(zip(numbers, answers, strict=True))
        return [answer for n in range(len(prompts)) for answer in found[n]]

    def _answers(self, prompts: Sequence[Sequence[int]], asked: _Asked) -> list[list[Completion]]:
        """Answers to prompts that are read in one context, those of each prompt together."""
        self._make_room(prompts, asked.new)
        if not self._probed:
            self._logprobs(prompts[:1])
        copies = 1 if asked.sampling is None else asked.sampling.samples
        if self._choice.is_due(sum(map(len, prompts)) + len(prompts) * copies * asked.new):
            self._choose_threads(prompts)
        begun = time.perf_counter()
        answers = self._settled(prompts, asked)
        tokens = sum(a[0].prompt_tokens + sum(b.new_tokens for b in a) for a in answers)
        self._choice.saw(tokens, time.perf_counter() - begun)
        return answers

    def _settled(self, prompts: Sequence[Sequence[int]], asked: _Asked) -> list[list[Completion]]:
        """The same, from slots that are empty at first and met in order."""
        self._opened().settle()
        if (sampling := asked.sampling) is None:
            stream = self._opened().stream(
                prompts,
                len(prompts),
                asked.finished,
                max_tokens=asked.new,
                cache_prompt=self._parallel > 1,
            )
            return [
                [self._completion(prompt, stream.ids[n], stream.reasons[n])]
                for n, prompt in enumerate(prompts)
            ]
        together = min(sampling.samples, self._parallel)
        with ThreadPoolExecutor(self._parallel // together if self._fast else 1) as pool:
            return list(pool.map(lambda p: self._samples(p, sampling, asked), prompts))

    def _samples(
        self, prompt: Sequence[int], sampling: Sampling, asked: _Asked
    ) -> list[Completion]:
        """Answers to one prompt; llama.cpp reads it once for as many as there are slots."""
        first_seed = stream_seed(sampling.seed, prompt) % _SEEDS
        options = {
            "samplers": ["temperature", "top_k", "top_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "max_tokens": asked.new,
            "cache_prompt": self._fast,
            **({} if self._fast else {"id_slot": 0}),
        }
        found: list[Completion] = []
        while len(found) < sampling.samples:
            count = min(self._parallel, sampling.samples - len(found))
            seed = first_seed + len(found)  # llama.cpp adds 1 for each further sample
            stream = self._opened().stream(
                [prompt], count, asked.finished, n=count, seed=seed, **options
            )
            found += [
                self._completion(
                    prompt,
                    stream.ids[n],
                    stream.reasons[n],
                    sample=len(found) + n,
                    seed=sampling.seed,
                )
                for n in range(count)
            ]
        return found

    def _completion(
        self, prompt: Sequence[int], ids: Sequence[int], reason: str, **drawn: Any
    ) -> Completion:
        stop: StopReason = "eos" if reason == "stop" else "length"
        kept = ids[:-1] if stop == "eos" else ids
        return completion(self._tokenizer, prompt, kept, stop, **drawn)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Log-probabilities (nats) of the next token, shape (n_prompts, vocabulary).

        Raises:
            GenerationError: An id or a length does not fit, or llama.cpp failed.
            NumericsError: The model's logits are not finite.
        """
        found = np.full((len(prompts), self._vocabulary), np.nan, dtype=np.float32)
        for numbers in self._contexts(prompts, 1):
            rows = [prompts[n] for n in numbers]
            self._make_room(rows, 1)
            found[numbers] = self._logprobs(rows)
        return found

    def _logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """What `next_token_logprobs` gives of prompts that are read in one context."""
        found = np.full((len(prompts), self._vocabulary), np.nan, dtype=np.float32)
        step = max(1, _PROBABILITIES_AT_ONCE // self._vocabulary)
        for first in range(0, len(prompts), step):
            slots = self._opened()
            slots.settle()
            answer = slots.answer(
                prompts[first : first + step],
                max_tokens=1,
                logprobs=self._vocabulary,
                logit_bias=[[slots.anchor, 1e6]],
            )
            for choice in answer["choices"]:
                row = first + int(choice["index"])
                entries = choice["logprobs"]["content"][0]["top_logprobs"]
                ids = [entry["id"] for entry in entries]
                found[row, ids] = [entry["logprob"] for entry in entries]
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if bad.size:
            raise NumericsError(
                f"{self._file.path}: llama.cpp's logits are not finite at prompt {bad[0]}; the "
                "weights are broken or overflow at this precision"
            )
        self._probed = True
        return _normalised(found)

    def close(self) -> None:
        """Release the weights; closing twice is harmless."""
        self._slots = None

    def __enter__(self) -> LlamaCppEngine:
        """The engine itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine."""
        self.close()
