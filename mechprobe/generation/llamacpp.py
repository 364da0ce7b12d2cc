"""llama.cpp in this process: greedy text and next-token log-probabilities of a GGUF file.

Prompts arrive as token ids, so nothing here adds a BOS or cuts text. A call is reproducible bit
for bit: its prompts enter llama.cpp as one list and meet the slots in a fixed order, without prompt
caches. A prompt alone and the same prompt among others may still differ: batches of other widths
take other kernels, and because k-quant kernels round activations to 8 bits, a last-bit difference
can flip a rounding (up to 0.1 nats were seen on random weights). `parallel=1` makes each prompt
independent of its companions.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import GenerationError, NumericsError
from mechprobe.generation.base import Completion, FloatArray, StopReason
from mechprobe.models.gguf_file import GgufFile, read_gguf
from mechprobe.models.gguf_info import quant_info
from mechprobe.models.gguf_tokenizer import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT_STEP: Final = 256
_FEW_WEIGHTS: Final = 64 << 20
"""Bytes below which a second thread costs more in barriers than it brings."""
_PROBABILITIES_AT_ONCE: Final = 400_000
_NORMAL: Final = 1


def _threads(path: Path, asked: int | None) -> int:
    if asked is not None:
        return asked
    if path.stat().st_size < _FEW_WEIGHTS:
        return 1
    import psutil

    return int(psutil.cpu_count(logical=False) or 1)


def _anchor(file: GgufFile) -> int:
    """A token of plain ASCII. llama.cpp reports no probabilities for a step whose text is none."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    ends = file.metadata.get("tokenizer.ggml.eos_token_id")
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _NORMAL and i != ends and token.isascii() and token.isalnum():
            return i
    raise GenerationError(f"{file.path}: no plain ASCII token in the vocabulary")


_WITH_IDS: Final = {"return_tokens": True, "verbose": True}


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer)
    text = error.get("message", error) if isinstance(error, dict) else error
    return (str(text).splitlines() or ["no message"])[0]


def _normalised(logprobs: FloatArray) -> FloatArray:
    """llama.cpp sums probabilities in float32 and is off by up to 2e-5; rows made to sum to 1."""
    exact = logprobs.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return exact.astype(np.float32)


class _Stream:
    """Collects the ids of a list of prompts, step by step as llama.cpp sends them."""

    def __init__(self, prompts: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(prompts)]
        self.steps = [0] * prompts
        self.reasons = ["length"] * prompts
        self.error: str | None = None

    def receive(self, event: dict[str, Any] | None) -> bool:
        """One event; returns whether llama.cpp may stop sending."""
        if not event:
            return False
        if "choices" not in event:
            self.error = _message(event)
            return True
        choice, detail = event["choices"][0], event["__verbose"]
        number = int(choice["index"])
        self.ids[number] += map(int, detail["tokens"])
        self.steps[number] = int(detail["tokens_predicted"])
        if choice["finish_reason"] is not None:
            self.reasons[number] = str(choice["finish_reason"])
        return False

    def lost(self, number: int) -> bool:
        """Whether llama.cpp predicted more tokens for a prompt than it sent."""
        return len(self.ids[number]) != self.steps[number]


class LlamaCppEngine:
    """A GGUF file on llama.cpp, through xllamacpp; closed after use."""

    name = "llama.cpp"

    def __init__(
        self,
        gguf: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        n_ctx: int | None = None,
        parallel: int = 8,
        threads: int | None = None,
    ) -> None:
        """Load the file and check that the tokenizer is its own.

        Args:
            gguf: A `.gguf` file.
            tokenizer: What renders the prompts; decodes the answers.
            n_ctx: Tokens of context for each sequence; None fits the longest prompt.
            parallel: Sequences decoded together.
            threads: None takes the physical cores, one for files below 64 MiB.

        Raises:
            CheckpointError: The file is broken; PrecisionError where it is mislabelled.
            VocabularyError: The tokenizer belongs to another model.
            GenerationError: llama.cpp cannot load the file.
        """
        if parallel < 1:
            raise GenerationError(f"parallel is {parallel}; at least 1 is needed")
        self._file = read_gguf(gguf)
        quant_info(self._file)
        check_vocabulary(gguf, tokenizer)
        self._tokenizer = tokenizer
        self._parallel = parallel
        self._threads = _threads(gguf, threads)
        self._fixed = n_ctx
        self._limit = int(self._file.get("context_length", 0)) or (1 << 30)
        self._vocabulary = len(self._file.metadata["tokenizer.ggml.tokens"])
        self._anchor = _anchor(self._file)
        self._probed = False
        self._server: Any = None
        self._context = 0
        self._open(n_ctx or self._context_for(_CONTEXT_STEP))

    def _context_for(self, needed: int) -> int:
        """Room for `needed` tokens, and no more than LongRoPE's short factors reach if they do.

        llama.cpp takes the long factors for every prompt once the context, not the prompt, is
        longer than the original one.
        """
        original = int(self._file.get("rope.scaling.original_context_length", 0))
        bounds = [self._limit, original] if original >= needed else [self._limit]
        return min(-(-needed // _CONTEXT_STEP) * _CONTEXT_STEP, *bounds)

    def _open(self, context: int) -> None:
        import xllamacpp

        self.close()
        params = xllamacpp.CommonParams()
        params.model.path = str(self._file.path)
        params.n_parallel = self._parallel
        params.n_ctx = context * self._parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.verbosity = -1
        params.warmup = False
        params.fit_params = False
        params.cache_prompt = False
        params.slot_prompt_similarity = 0.0
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.swa_full = True
        # The binding opens an HTTP port on the loopback; a key nobody knows keeps it shut.
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = False
        params.ui = False
        params.n_threads_http = 1
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise GenerationError(
                f"{self._file.path}: llama.cpp cannot load it (architecture "
                f"{self._file.architecture!r}, {context} tokens of context for each of "
                f"{self._parallel} sequences): {str(error).splitlines()[0]}"
            ) from error
        self._context = context
        # A server that is closed before its loop has begun never ends; one answer says it has.
        self._settle()

    def _settle(self) -> None:
        """Use every slot once, in order, so that the next prompts meet them in order again.

        llama.cpp hands out the slot that was idle longest; another order is another batch.
        """
        for slot in range(self._parallel):
            self._answer([[self._anchor]], max_tokens=1, id_slot=slot)

    def _make_room(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Check the ids, and reopen with a larger context where the longest prompt needs one."""
        self._opened()
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
        if needed > self._context:
            self._open(self._context_for(needed))

    def _opened(self) -> Any:
        if self._server is None:
            raise GenerationError(f"{self._file.path}: the engine is closed")
        return self._server

    def _body(self, prompts: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
        ids = [list(map(int, prompt)) for prompt in prompts]
        return {"prompt": ids, "temperature": 0.0, "cache_prompt": False, **options}

    def _answer(self, prompts: Sequence[Sequence[int]], **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._opened().handle_completions(self._body(prompts, **options))
        if "choices" not in answer:
            raise GenerationError(f"{self._file.path}: llama.cpp: {_message(answer)}")
        return answer

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64
    ) -> list[Completion]:
        """Greedy completions of token-id prompts, in the order given.

        Raises:
            GenerationError: An id or a length does not fit, or llama.cpp failed.
            NumericsError: The model's logits are not finite.
        """
        if not prompts:
            return []
        self._make_room(prompts, max_new_tokens)
        if not self._probed:
            self.next_token_logprobs(prompts[:1])
        self._settle()
        stream = _Stream(len(prompts))
        self._request(stream, prompts, max_tokens=max_new_tokens)
        for number, prompt in enumerate(prompts):
            if stream.lost(number):
                # Steps that end inside a character are held back and their ids never sent; asked
                # alone and in one piece, llama.cpp gives them all.
                stream.ids[number], stream.reasons[number] = self._alone(prompt, max_new_tokens)
        return [
            self._completion(stream.ids[n], stream.reasons[n], len(prompt))
            for n, prompt in enumerate(prompts)
        ]

    def _request(
        self, stream: _Stream, prompts: Sequence[Sequence[int]], *, max_tokens: int
    ) -> None:
        request = self._body(prompts, max_tokens=max_tokens, stream=True, **_WITH_IDS)
        self._opened().handle_completions(request, stream.receive)
        if stream.error is not None:
            raise GenerationError(f"{self._file.path}: llama.cpp: {stream.error}")

    def _alone(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], str]:
        answer = self._answer([prompt], max_tokens=max_tokens, **_WITH_IDS)
        reason = str(answer["choices"][0]["finish_reason"])
        return [int(i) for i in answer["__verbose"]["tokens"]], reason

    def _completion(self, ids: Sequence[int], reason: str, prompt_tokens: int) -> Completion:
        stop: StopReason = "eos" if reason == "stop" else "length"
        kept = tuple(ids[:-1] if stop == "eos" else ids)
        text = self._tokenizer.decode(list(kept), skip_special_tokens=True)
        return Completion(str(text), kept, stop, prompt_tokens)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Log-probabilities (nats) of the next token, shape (n_prompts, vocabulary).

        Raises:
            GenerationError: An id or a length does not fit, or llama.cpp failed.
            NumericsError: The model's logits are not finite.
        """
        found = np.full((len(prompts), self._vocabulary), np.nan, dtype=np.float32)
        if not prompts:
            return found
        self._make_room(prompts, 1)
        step = max(1, _PROBABILITIES_AT_ONCE // self._vocabulary)
        for first in range(0, len(prompts), step):
            self._settle()
            answer = self._answer(
                prompts[first : first + step],
                max_tokens=1,
                logprobs=self._vocabulary,
                logit_bias=[[self._anchor, 1e6]],
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
        self._server = None
        self._context = 0

    def __enter__(self) -> LlamaCppEngine:
        """The engine itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine."""
        self.close()
