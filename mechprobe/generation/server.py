"""Text out of any OpenAI-compatible server: vLLM, llama-server, Ollama and others.

Where the server takes token ids (vLLM and llama-server do), it gets the ids that every other engine
gets, and its count of them is held against ours. A server that takes only text renders its prompts
itself; its answers are marked `parity: unverified` and compare with their like alone. Each answer
is a request of its own with a seed of its own. What shares a batch is the server's affair, so
reruns are as alike as the server makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import GenerationError
from mechprobe.generation.api import ApiClient, ApiError, Endpoint, Request
from mechprobe.generation.base import Completion, FloatArray, Sampling, repeated, stream_seed
from mechprobe.generation.server_forms import (
    asking,
    listed_in,
    next_token_row,
    plain_token,
    read_completion,
    request_for,
    stop_tokens,
    thoughts_of,
)
from mechprobe.generation.server_samplers import note_of, sampler_forms
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEEDS: Final = 1 << 31
_REFUSALS: Final = (400, 404, 405, 422, 501)
"""What servers answer to a field or a form of prompt that they do not know."""
_WIDTHS: Final = (1000, 20, 5)
"""Log-probabilities asked for: llama-server gives any number, vLLM 20 by default, others 5."""

_TEXTS: Final = "texts were sent, parity: unverified"
_GREETING: Final = "Hello"
"""Sent once to a server of texts, to learn which fields it takes."""
_CUT: Final = "answers were cut at fewer tokens than asked for, by a limit of the server's own"

Prompts = Sequence[Sequence[int]] | Sequence[str] | EncodedPrompts


class ServerEngine:
    """One model on one server; closed after use: `with engine: …`."""

    name = "server"
    threads: int | None = None

    def __init__(
        self,
        endpoint: Endpoint | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        timeout: float = 300.0,
        attempts: int = 5,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        backoff: float = 1.0,
    ) -> None:
        """Make ready; nothing is sent.

        Args:
            endpoint: Model and server, or `openai:MODEL@URL`.
            tokenizer: The one that rendered the prompts; needed for log-probabilities alone.
            timeout: Seconds for one attempt.
            attempts: Of each request.
            concurrency: Requests on their way at the same time.
            requests_per_minute: A limit to keep.
            backoff: Seconds; the longest wait after a first failure, doubled by each further.
        """
        self.endpoint = Endpoint.parse(endpoint) if isinstance(endpoint, str) else endpoint
        self._tokenizer = tokenizer
        self._client: ApiClient | None = ApiClient(
            self.endpoint,
            timeout=timeout,
            attempts=attempts,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            backoff=backoff,
        )
        # where an answer ends on every other engine, for a server that lets itself be told
        self._ends = {} if tokenizer is None else {"stop_token_ids": sorted(stop_tokens(tokenizer))}
        self.notes: tuple[str, ...] = ()
        """What did not go as asked: text instead of ids, a sampler of the server's own."""
        self._takes_ids: bool | None = None
        self._no_ids = ""
        self._form: int | None = None

    @property
    def retries(self) -> int:
        """Attempts that failed in passing and were made again."""
        return self._opened().retries

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Completions in the order of the prompts; greedy without `sampling`.

        Args:
            prompts: Token ids; or user messages, for the server's own chat template. Of
                `EncodedPrompts`, the texts are sent where the server takes no ids.
            max_new_tokens: Where an answer that does not end by itself is cut.
            sampling: See `Sampling`.
            progress: Told of answers done and in all.

        Raises:
            GenerationError: The server takes no ids and there are no texts, reads other tokens
                than were sent, or did not answer a request; ApiError in the last case.
        """
        if sampling is not None and sampling.greedy:
            alone = self.generate(prompts, max_new_tokens=max_new_tokens, progress=progress)
            return repeated(alone, sampling)
        total = len(prompts) * (1 if sampling is None else sampling.samples)
        found: dict[int, Completion] = {}
        for number, answer in self.as_they_finish(
            prompts, max_new_tokens=max_new_tokens, sampling=sampling
        ):
            if isinstance(answer, ApiError):
                raise answer
            found[number] = answer
            progress(len(found), total)
        return [found[number] for number in range(len(found))]

    def as_they_finish(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        numbers: Iterable[int] | None = None,
    ) -> Iterator[tuple[int, Completion | ApiError]]:
        """Answers as they arrive, so that each can be kept at once.

        Args:
            prompts: As in `generate`.
            max_new_tokens: As in `generate`.
            sampling: As in `generate`; temperature 0 asks for every sample.
            numbers: Which answers to ask for, counted prompt by prompt; None is all of them.

        Yields:
            The number of an answer, and the answer or the last attempt's error.
        """
        copies = 1 if sampling is None else sampling.samples
        asked = range(len(prompts) * copies) if numbers is None else tuple(numbers)
        if not asked:
            return
        ids = self._ids_or_texts(prompts)
        drawn = self._options(sampling)
        inside = thoughts_of(prompts, self._tokenizer)

        def request(number: int) -> Request:
            prompt, sample = ids[number // copies], number % copies
            options = dict(drawn)
            if sampling is not None and not sampling.greedy:
                options["seed"] = stream_seed(sampling.seed, prompt, sample) % _SEEDS
            return request_for(prompt, max_tokens=max_new_tokens, **self._ends, **options)

        for place, reply in self._opened().map(request(number) for number in asked):
            number = asked[place]
            if isinstance(reply, ApiError):
                yield number, reply
                continue
            if reply.stop == "length" and 0 < (reply.completion_tokens or 0) < max_new_tokens:
                self._note(_CUT)
            yield (
                number,
                read_completion(
                    reply,
                    ids[number // copies],
                    endpoint=self.endpoint,
                    sample=number % copies,
                    seed=None if sampling is None or sampling.greedy else sampling.seed,
                    tokenizer=self._tokenizer,
                    inside=inside[number // copies],
                ),
            )

    def next_token_logprobs(self, prompts: Prompts) -> FloatArray:
        """Log-probabilities (nats) of the next token, shape (n_prompts, vocabulary).

        A server lists only its likeliest tokens. The others get minus infinity where those listed
        hold all but 0.1 % of the probability, else NaN.

        Raises:
            GenerationError: The server takes no token ids, or gives no log-probabilities.
        """
        if self._tokenizer is None:
            raise GenerationError(f"{self.endpoint}: log-probabilities need the model's tokenizer")
        ids = self._ids_or_texts(prompts)
        if any(isinstance(prompt, str) for prompt in ids):
            raise self._no_letters("takes no token ids")
        found = np.full((len(ids), len(self._tokenizer)), np.nan, dtype=np.float32)
        if not ids:
            return found
        drawn = self._options(None)
        width = self._listable(ids[0], drawn)
        plain = plain_token(self._tokenizer, str(self.endpoint))
        requests = (asking(prompt, width, **drawn) for prompt in ids)
        for number, reply in self._opened().map(requests):
            entries = listed_in(reply, str(self.endpoint))
            if not entries:  # llama.cpp lists nothing for a step whose text is none
                biased = drawn | {"logit_bias": [[plain, 1e6]]}
                forced = asking(ids[number], width, **biased)
                entries = listed_in(self._opened().send(forced), str(self.endpoint))
            if not entries:
                raise self._no_letters("gives no log-probabilities")
            found[number] = next_token_row(entries, found.shape[1])
        return found

    def close(self) -> None:
        """Drop the connections; closing twice is harmless."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def __enter__(self) -> ServerEngine:
        """The engine itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the engine."""
        self.close()

    def _opened(self) -> ApiClient:
        if self._client is None:
            raise GenerationError(f"{self.endpoint}: the engine is closed")
        return self._client

    def _ids_or_texts(self, prompts: Prompts) -> list[tuple[int, ...] | str]:
        """What to send: token ids if the server takes them, else the texts."""
        rows: list[Any] = list(prompts)
        texts = [row for row in rows if isinstance(row, str)]
        if texts:
            if len(texts) < len(rows):
                raise GenerationError("texts and token ids among the same prompts; give one kind")
            self._note(_TEXTS)
            return list(texts)
        ids = [tuple(int(token) for token in row) for row in rows]
        empty = next((number for number, row in enumerate(ids) if not row), None)
        if empty is not None:
            raise GenerationError(f"prompt {empty} has no tokens")
        if not ids:
            return []
        if self._takes_ids is None:
            self._no_ids = self._agree(ids[0])
            self._takes_ids = not self._no_ids
        if self._takes_ids:
            return list(ids)
        if not isinstance(prompts, EncodedPrompts) or prompts.template != "chat":
            raise GenerationError(
                f"{self.endpoint}: takes no token ids ({self._no_ids}); give it prompts rendered "
                "with a chat template, whose texts it can be sent"
            )
        self._note(f"takes no token ids: {_TEXTS}")
        return list(prompts.texts)

    def _refusal(self, request: Request) -> str:
        """Why the server does not take this form of request; empty if it does.

        Raises:
            ApiError: It cannot be reached, or failed.
        """
        try:
            self._opened().send(request)
        except ApiError as error:
            if error.status not in _REFUSALS:
                raise
            return str(error).removeprefix(f"{self.endpoint}: ")
        return ""

    def _agree(self, prompt: tuple[int, ...] | str) -> str:
        """Find the fullest form of a request that the server takes; why none is, else empty."""
        why = ""
        for number, form in enumerate(sampler_forms(None)):
            why = self._refusal(request_for(prompt, max_tokens=1, **self._ends, **form))
            if not why:
                self._form = number
                break
        return why

    def _options(self, sampling: Sampling | None) -> dict[str, Any]:
        """Fields of the body; servers have defaults of their own for what is not in it.

        Raises:
            GenerationError: top-k is wanted and the server does not know it.
        """
        forms = sampler_forms(sampling)
        if self._form is None and self._agree(_GREETING):
            self._form = len(forms) - 1  # the requests themselves will say what is wrong
        assert self._form is not None
        if "top_k" not in forms[self._form] and sampling is not None and sampling.top_k:
            raise GenerationError(f"{self.endpoint}: does not know top_k; leave it out")
        if note := note_of(self._form):
            self._note(note)
        return forms[self._form]

    def _listable(self, prompt: tuple[int, ...] | str, drawn: Mapping[str, Any]) -> int:
        """How many log-probabilities this server lists for a token."""
        width = next((n for n in _WIDTHS if not self._refusal(asking(prompt, n, **drawn))), None)
        if width is None:
            raise self._no_letters("refuses to give log-probabilities")
        return width

    def _no_letters(self, why: str) -> GenerationError:
        return GenerationError(
            f"{self.endpoint}: {why}, so letters cannot be scored here; use vLLM, llama-server or "
            "the file itself"
        )

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes = (*self.notes, note)
