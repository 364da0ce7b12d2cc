"""`openai:MODEL@URL`: a language model on any OpenAI-compatible server as judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechprobe.behavior.judges import prompt as wording
from mechprobe.behavior.judges.base import Opinion
from mechprobe.errors import JudgeError, warn_of_checkpoint
from mechprobe.generation.api import ApiClient, ApiError, Endpoint, Reply, Request
from mechprobe.generation.server_samplers import REFUSED, note_of, sampler_forms


@dataclass(frozen=True, slots=True)
class Calls:
    """How a server is called; none of it decides a label but `max_tokens` and `temperature`."""

    timeout: float = 120.0
    """Seconds for one attempt."""
    attempts: int = 5
    """At getting any reply, for each question."""
    concurrency: int = 8
    requests_per_minute: float | None = None
    backoff: float = 1.0
    max_tokens: int = 256
    """Room for a model that thinks before it answers."""
    temperature: float | None = 0.0
    """None leaves it to the server; some models take no other."""


def about_server(endpoint: Endpoint, calls: Calls) -> Mapping[str, Any]:
    """Everything that decides the labels of a server, as far as it can be told from here."""
    neutral = {"samplers": "neutral"} if _greedy(endpoint, calls) else {}
    return neutral | {
        "judge": "openai",
        "model": endpoint.model,
        "url": endpoint.url,
        "prompt": wording.DIGEST,
        "max_tokens": calls.max_tokens,
        "temperature": calls.temperature,
    }


def _greedy(endpoint: Endpoint, calls: Calls) -> bool:
    """Whether neutral samplers are sent: greedy, and no hosted API, which has no others."""
    return calls.temperature == 0.0 and not endpoint.hosted


class RemoteJudge:
    """Asks a server for a label, and takes nothing for one that is none."""

    version = wording.VERSION
    paid = True
    tries = 2

    def __init__(
        self, endpoint: Endpoint, calls: Calls | None = None, *, asks: bool = True
    ) -> None:
        """Make ready; nothing is sent.

        Args:
            endpoint: Model and server.
            calls: How it is called.
            asks: False for a judge that only counts what it would ask, which needs no key.

        Raises:
            MissingExtraError: The extra `judges` is not installed.
            SpecError: The key's variable is not set.
        """
        how = calls or Calls()
        self.name = str(endpoint)
        self._calls = how
        # OpenAI's own newer models know the limit by another name
        ours = endpoint.host == "api.openai.com"
        self._limit = "max_completion_tokens" if ours else "max_tokens"
        self.about = about_server(endpoint, how)
        self._forms: tuple[Mapping[str, Any], ...] = ({},)
        """What is sent beside limit and temperature, fullest first; only the form that a server
        takes is left."""
        if _greedy(endpoint, how):
            self._forms = (*sampler_forms(None)[:-1], {})
        self._client: ApiClient | None = None
        if asks:
            self._client = ApiClient(
                endpoint,
                timeout=how.timeout,
                attempts=how.attempts,
                concurrency=how.concurrency,
                requests_per_minute=how.requests_per_minute,
                backoff=how.backoff,
            )

    def opinions(
        self, pairs: Iterable[tuple[str, str]], attempt: int
    ) -> Iterator[tuple[int, Opinion]]:
        """Labels as they arrive, several requests at a time.

        Raises:
            JudgeError: It was opened to count alone.
        """
        if self._client is None:
            raise JudgeError(f"{self.name}: opened to count questions, not to ask them")
        asked: list[tuple[str, str]] = []
        fullest = self._forms[0]

        def questions() -> Iterator[Request]:
            for pair in pairs:
                asked.append(pair)
                yield self._question(*pair, attempt, fullest)

        refused: list[tuple[int, ApiError]] = []
        for number, found in self._client.map(questions()):
            if isinstance(found, Reply):
                self._forms = (fullest,)
            elif len(self._forms) > 1 and found.status in REFUSED:
                refused.append((number, found))
                continue
            yield number, _opinion(found)
        taken = self._forms == (fullest,)  # then it is the question that was refused
        for number, error in refused:
            again = None if taken else self._ask_plainly(asked[number], attempt, error)
            yield number, again or _opinion(error)

    def _ask_plainly(self, pair: tuple[str, str], attempt: int, error: ApiError) -> Opinion:
        """Ask again with fewer fields, and remember the form that is taken."""
        assert self._client is not None
        found: Reply | ApiError = error
        for number, form in enumerate(self._forms):
            if number or len(self._forms) == 1:  # the fullest was refused
                ((_, found),) = self._client.map([self._question(*pair, attempt, form)])
            if isinstance(found, Reply):
                if number:
                    warn_of_checkpoint(self.name, [note_of(number)])
                self._forms = (form,)
                break
        return _opinion(found)

    def tokens(self, prompt: str, answer: str) -> tuple[int, int]:
        """UTF-8 bytes of the message / 4, rounded up, and the most that may be generated."""
        size = len(wording.render(prompt, answer).encode("utf-8", "replace"))
        return -(-size // 4), self._calls.max_tokens

    def close(self) -> None:
        """Drop the connections."""
        if self._client is not None:
            self._client.close()

    def _question(self, prompt: str, answer: str, attempt: int, form: Mapping[str, Any]) -> Request:
        message = wording.render(prompt, answer, again=attempt > 0)
        body: dict[str, Any] = {**form, self._limit: self._calls.max_tokens}
        if self._calls.temperature is not None:
            body["temperature"] = self._calls.temperature
        # one user message, since some templates know no system role
        return Request(messages=({"role": "user", "content": message},), options=body)


def _opinion(found: Reply | ApiError) -> Opinion:
    if isinstance(found, ApiError):
        return Opinion(
            status="error", problem=str(found), passing=found.passing, stops_all=found.for_all
        )
    label = wording.parse(found.text)
    return Opinion(
        label,
        "unparsed" if label is None else "labelled",
        prompt_tokens=found.prompt_tokens or 0,
        completion_tokens=found.completion_tokens or 0,
        served=found.model,
        reply=found.text,
    )
