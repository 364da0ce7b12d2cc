"""A client of OpenAI-compatible servers that loses nothing and says nothing it should not.

The `openai` package carries the requests; tenacity repeats them. Both the key and all texts stay
out of every error: a server may put any of them into its own message, which is therefore not shown.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

from mechprobe.errors import GenerationError, require
from mechprobe.generation.endpoint import ApiError, Endpoint, Kind, Reply, Request, read_reply
from mechprobe.generation.server_errors import said_by

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["ApiClient", "ApiError", "Endpoint", "Reply", "Request"]

_PASSING = {408: "time-out", 409: "server", 425: "server", 429: "rate limit"}
_LONGEST_WAIT = 600.0
"""Seconds. A server that asks for more is better asked again by a later run."""
_SLOWEST_BACKOFF = 60.0


class ApiClient:
    """One model on one server, many requests at a time; closed after use: `with client: …`.

    Time-outs, lost connections, 408, 409, 429, 5xx and replies that are no whole JSON are tried
    again, with exponential back-off and jitter. While a server's Retry-After runs, no request of
    this client is sent.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float = 120.0,
        attempts: int = 5,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        backoff: float = 1.0,
    ) -> None:
        """Read the key and make ready; nothing is sent.

        Args:
            endpoint: Model and server.
            timeout: Seconds for one attempt, from the request to the last byte of the reply.
            attempts: Of each request, the first one included.
            concurrency: Requests on their way at the same time.
            requests_per_minute: Attempts are sent at least 60 s / this apart.
            backoff: Seconds; the longest wait after the first failure, doubled by each further.

        Raises:
            MissingExtraError: `openai` or `tenacity` is not installed.
            SpecError: The key's variable is not set.
            GenerationError: A number makes no sense.
        """
        for name, value in (("timeout", timeout), ("attempts", attempts)):
            if not 0 < value < math.inf:
                raise GenerationError(f"{endpoint}: {name} is {value}; it must be above 0")
        if concurrency < 1 or (requests_per_minute is not None and not requests_per_minute > 0):
            raise GenerationError(
                f"{endpoint}: concurrency is {concurrency}, requests per minute "
                f"{requests_per_minute}; both must be above 0"
            )
        self._openai = require("openai", "judges")
        self._tenacity = require("tenacity", "judges")
        endpoint.key()
        self.endpoint = endpoint
        self._timeout = timeout
        self._attempts = attempts
        self._concurrency = concurrency
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._backoff = backoff
        self.retries = 0
        """Attempts that failed in passing and were made again."""
        self._next = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI | None = None

    def __repr__(self) -> str:
        """The endpoint alone."""
        return f"ApiClient({self.endpoint})"

    def __enter__(self) -> ApiClient:
        """The client itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the client."""
        self.close()

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, **options: Any
    ) -> Reply:
        """Answer one conversation; options are those of `Request.chat`.

        Raises:
            ApiError: There was no reply after the last attempt.
        """
        return self.send(Request.chat(messages, max_tokens=max_tokens, **options))

    def complete(self, prompt: str | Sequence[int], *, max_tokens: int, **options: Any) -> Reply:
        """Go on with a text or with token ids; options are those of `Request.complete`.

        Raises:
            ApiError: There was no reply after the last attempt.
        """
        return self.send(Request.complete(prompt, max_tokens=max_tokens, **options))

    def send(self, request: Request) -> Reply:
        """Send one request.

        Raises:
            ApiError: There was no reply after the last attempt.
        """
        (_, found) = next(self.map([request]))
        if isinstance(found, ApiError):
            raise found
        return found

    def map(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply | ApiError]]:
        """Send requests, `concurrency` at a time, and give replies as they arrive.

        A request is taken from the iterable when there is room for it, so that a caller who stops
        early has sent no more than `concurrency` in vain.

        Yields:
            The place of the request in the iterable, and its reply or the last attempt's error.
        """
        loop = self._started()
        waiting: dict[Future[Reply | ApiError], int] = {}
        source = enumerate(requests)
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < self._concurrency:
                    number, request = next(source, (-1, None))
                    if request is None:
                        more = False
                    else:
                        task = asyncio.run_coroutine_threadsafe(self._settled(request), loop)
                        waiting[task] = number
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for task in done:
                    yield waiting.pop(task), task.result()
        finally:
            for task in waiting:
                task.cancel()

    def close(self) -> None:
        """Drop what is still on its way and every connection; closing twice is harmless."""
        loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._ended(), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # a daemon: a client that nobody closed must not keep the process alive
            threading.Thread(target=_serve, args=(self._loop,), daemon=True).start()
        return self._loop

    async def _ended(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _settled(self, request: Request) -> Reply | ApiError:
        """The reply, or the error of the last attempt."""
        tenacity = self._tenacity
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(multiplier=self._backoff, max=_SLOWEST_BACKOFF),
            retry=tenacity.retry_if_result(lambda f: isinstance(f, ApiError) and f.passing),
            retry_error_callback=lambda state: state.outcome.result(),
            before_sleep=self._count,
        )
        found: Reply | ApiError = await retrying(self._attempt, request)
        return found

    def _count(self, state: object) -> None:
        self.retries += 1

    async def _turn(self) -> None:
        """Wait until a request may be sent. Waking, look again: a Retry-After may have come."""
        clock = asyncio.get_running_loop().time
        while (left := self._next - clock()) > 0:
            await asyncio.sleep(left)
        self._next = clock() + self._interval

    async def _attempt(self, request: Request) -> Reply | ApiError:
        await self._turn()
        openai = self._openai
        try:
            async with asyncio.timeout(self._timeout):  # httpx bounds the gaps, never the whole
                text = await self._post(request)
        except (TimeoutError, openai.APITimeoutError):
            return self._error("time-out", f"no whole reply within {self._timeout:g} s")
        except openai.APIConnectionError:
            return self._error("connection", "no connection, or it was lost; is the server up?")
        except openai.APIStatusError as error:
            return self._bad_status(error)
        try:
            return read_reply(text, self.endpoint.key() or "")
        except ValueError:
            return self._error("garbled", "the reply is no whole JSON answer", 200)

    async def _post(self, request: Request) -> str:
        client: Any = self._client
        if client is None:
            client = self._client = self._openai.AsyncOpenAI(
                base_url=self.endpoint.url,
                api_key=self.endpoint.key() or "none",
                timeout=self._timeout,
                max_retries=0,
            )
        if request.messages is not None:
            create = client.chat.completions.with_raw_response.create
            given: dict[str, Any] = {"messages": list(request.messages)}
        else:
            create = client.completions.with_raw_response.create
            text = isinstance(request.prompt, str)
            given = {"prompt": request.prompt if text else list(request.prompt or ())}
        response = await create(
            model=self.endpoint.model, extra_body=dict(request.options), **given
        )
        return str(response.text)

    def _bad_status(self, error: Any) -> ApiError:
        status = int(error.status_code)
        kind: Any = _PASSING.get(status, "server" if status >= 500 else "refused")
        pause = _retry_after(error.response.headers)
        if kind != "refused" and pause is not None:
            if pause > _LONGEST_WAIT:
                asked = f"HTTP {status}, asking to wait {pause:.0f} s; run the same again then"
                return self._error("refused", asked, status)
            self._next = max(self._next, asyncio.get_running_loop().time() + pause)
        said = said_by(error.body, self.endpoint.key() or "")
        return self._error(kind, f"HTTP {status}" + (f" ({said})" if said else ""), status)

    def _error(self, kind: Kind, what: str, status: int | None = None) -> ApiError:
        return ApiError.of(f"{self.endpoint}: {what}", kind, status)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds == seconds else None
