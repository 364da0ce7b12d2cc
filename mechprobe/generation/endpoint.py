"""What is sent to an OpenAI-compatible server, and what comes back: plain values, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from mechprobe.errors import GenerationError, SpecError
from mechprobe.generation.reply_parts import answer_in, thought_in, unseen_thought
from mechprobe.generation.server_errors import shown_model, without_key
from mechprobe.textfiles import parse_json

__all__ = ["ApiError", "Endpoint", "Kind", "Reply", "Request", "read_reply"]

_KEYS = {
    "api.openai.com": "OPENAI_API_KEY",
    "api.anthropic.com": "ANTHROPIC_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
}
"""A key goes to its own host unasked, and to another only when the endpoint names the variable."""

_SPELLED = re.compile(r"openai:(?P<model>.+)@(?P<url>https?://[^#\s]+)(?:#(?P<variable>\w+))?")

_KEY = re.compile(r"[!-~]+")

_FOR_ALL = (401, 402, 403, 404, 408, 409, 425, 429)
"""Of these the latter four are refused only where their Retry-After is too long."""


_URL = TypeAdapter(AnyHttpUrl)


def _host(url: str) -> str:
    """The host in the URL of a server's API; the only place where such a URL is taken apart.

    Raises:
        ValueError: No server can be reached by it, or it carries a secret; one line, without it.
    """
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority or "?" in url:
        raise ValueError(
            "no key belongs into a URL; put it into an environment variable and name that after a #"
        )
    try:
        found = _URL.validate_python(url)
        host = found.host or ""
        host.encode("idna")  # no part of it is empty or too long
    except ValidationError as error:
        raise ValueError(error.errors()[0]["ctx"]["error"]) from error
    except UnicodeError as error:
        raise ValueError("a part of the host's name is empty or too long") from error
    if not authority or not url.isprintable() or "\\" in url:
        raise ValueError("empty host, or a character that no URL has")
    if not authority.isascii() or len(host) > _LONGEST_HOST:
        raise ValueError("the host's name is too long, or not in its ASCII form")
    if not found.port:
        raise ValueError("invalid port number")
    return host


_LONGEST_HOST = 253
"""Characters of a name in the DNS (RFC 1035)."""


Kind = Literal["time-out", "connection", "rate limit", "server", "garbled", "refused"]


class ApiError(GenerationError):
    """No reply after the last attempt. A value in `ApiClient.map`, raised everywhere else."""

    kind: Kind = "refused"
    """`garbled` is a reply that is no whole JSON of the right shape; `refused` any other 4xx."""
    status: int | None = None
    """HTTP status; None where none arrived."""

    @classmethod
    def of(cls, message: str, kind: Kind, status: int | None = None) -> ApiError:
        """An error of one kind."""
        error = cls(message)
        error.kind, error.status = kind, status
        return error

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind != "refused"

    @property
    def for_all(self) -> bool:
        """Whether every other request to this server would fail alike.

        A bad key, no credit, an unknown model, or a server that wants to be left alone for longer
        than is waited for.
        """
        return self.kind == "refused" and (self.status in _FOR_ALL or (self.status or 0) >= 500)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model on one server. The key itself is never a part of it."""

    model: str
    url: str
    """Base of the API, for example `http://localhost:11434/v1`."""
    key_variable: str = ""
    """Environment variable that holds the key; empty for a server that wants none."""

    def __post_init__(self) -> None:
        """Refuse what no server can be reached by.

        Raises:
            SpecError: The URL is malformed or carries a secret, which is not shown.
        """
        try:
            _host(self.url)
        except ValueError as error:
            shown = "…" if "@" in self.url or "?" in self.url else self.url
            raise SpecError(
                f"openai:{self.model}@{shown}: not the URL of a server: {error}"
            ) from error

    @property
    def host(self) -> str:
        """The server's name or address, in lower case."""
        return _host(self.url)

    @property
    def hosted(self) -> bool:
        """Whether it is a provider's, whose requests have no defaults but OpenAI's own."""
        return self.host in _KEYS

    def __str__(self) -> str:
        """As it is spelled."""
        named = self.key_variable != _KEYS.get(self.host, "")
        return f"openai:{self.model}@{self.url}" + (f"#{self.key_variable}" if named else "")

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `openai:MODEL@URL` or `openai:MODEL@URL#VARIABLE`.

        A URL without a path gets `/v1`. VARIABLE names the environment variable with the key;
        the hosts of OpenAI, Anthropic and OpenRouter have theirs, other servers get no key.

        Raises:
            SpecError: It is spelled otherwise, the URL is malformed, or it carries a secret.
        """
        found = _SPELLED.fullmatch(text)
        if found is None:
            shown = text if "://" not in text else text.partition("://")[0] + "://…"
            raise SpecError(
                f"{shown}: not an endpoint; write openai:MODEL@URL, for example "
                "openai:gemma3:12b@http://localhost:11434/v1"
            )
        url = found["url"].rstrip("/")
        if "/" not in url.partition("://")[2]:
            url += "/v1"
        endpoint = cls(found["model"], url, found["variable"] or "")
        return replace(endpoint, key_variable=endpoint.key_variable or _KEYS.get(endpoint.host, ""))

    def key(self) -> str | None:
        """The key, from the environment; None for a server that wants none.

        Raises:
            SpecError: The variable is not set, or what it holds can be no key.
        """
        if not self.key_variable:
            return None
        found = os.environ.get(self.key_variable, "").strip()
        if not found:
            raise SpecError(f"{self}: no key; put it into the environment as {self.key_variable}")
        if not _KEY.fullmatch(found):
            raise SpecError(
                f"{self}: {self.key_variable} holds a space, a line break or a character outside "
                "ASCII, which no key has; copy the key again"
            )
        return found


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `/chat/completions` (`messages`) or of `/completions` (`prompt`)."""

    messages: tuple[Mapping[str, str], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    """Text, or token ids where the server takes them (vLLM, llama-server)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Everything else in the body, the model apart."""

    @classmethod
    def chat(
        cls,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seed: int | None = None,
        **options: Any,
    ) -> Request:
        """A conversation to answer.

        Args:
            messages: Each with `role` and `content`.
            max_tokens: At most so many are generated.
            temperature: None leaves it to the server; some models take no other.
            seed: Of the server's sampler.
            options: More of the body, as the server spells it.
        """
        body = _options(max_tokens, temperature, seed, options)
        return cls(messages=tuple(messages), options=body)

    @classmethod
    def complete(
        cls,
        prompt: str | Sequence[int],
        *,
        max_tokens: int,
        temperature: float | None = 0.0,
        seed: int | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> Request:
        """A text to go on with.

        Args:
            prompt: Text or token ids, without any template of the server's.
            max_tokens: At most so many are generated.
            temperature: None leaves it to the server.
            seed: Of the server's sampler.
            logprobs: How many alternatives to report for each token.
            options: More of the body, as the server spells it.
        """
        given = prompt if isinstance(prompt, str) else tuple(prompt)
        more = options if logprobs is None else {**options, "logprobs": logprobs}
        return cls(prompt=given, options=_options(max_tokens, temperature, seed, more))


def _options(
    max_tokens: int, temperature: float | None, seed: int | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    known = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return {k: v for k, v in known.items() if v is not None} | dict(more)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    text: str
    stop: str
    """The server's finish reason: `stop`, `length`, `content_filter`, …; `unknown` without one.

    As sent, so that it may be anything.
    """
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str = ""
    """The model's name as the server gives it; empty if it may be anything else."""
    thought: str = ""
    """What a server keeps apart from the answer as its reasoning."""
    choice: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The choice as sent: log-probabilities and what one kind of server adds."""


def read_reply(text: str, key: str = "") -> Reply:
    """Read the body of a 200 response strictly.

    A message without text but with a finish reason is an empty text: a model may spend all its
    tokens on thinking, which `thought` then holds, or a sign of it where its tokens are told. One
    without either is no answer. Half a surrogate pair, which no file can hold, becomes U+FFFD.

    Args:
        text: As it came.
        key: That was sent with the request; blanked wherever it is quoted. A model's name that
            holds a part of it is not taken.

    Raises:
        ValueError: It is no whole JSON document, or not of the right shape.
    """
    sent = parse_json(text, unpaired=True)
    found = without_key(sent, key)
    try:
        choice = found["choices"][0]
        if choice != sent["choices"][0] and "token_ids" in choice:
            choice["token_ids"] = None  # they spell what was blanked
        stop = choice.get("finish_reason")
        message = choice.get("message")
        answer = choice["text"] if message is None else answer_in(message)
        if answer is None and message is not None:
            answer = message.get("refusal") or ("" if stop else None)
        thought = thought_in(choice if message is None else message)
        usage = found.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}  # counts are no part of the answer
        counts = [usage.get(f"{part}_tokens") for part in ("prompt", "completion")]
        model = shown_model(sent.get("model"), key)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("no choice with a text") from error
    if not isinstance(answer, str):
        raise ValueError("no text")
    if not answer.strip():
        thought = thought or unseen_thought(usage)
    prompt, completion = (n if isinstance(n, int) else None for n in counts)
    return Reply(
        _whole(answer),
        _whole(str(stop or "unknown")),
        prompt,
        completion,
        model,
        _whole(thought),
        choice,
    )


def _whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
