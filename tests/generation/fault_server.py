"""An OpenAI-compatible server on loopback that fails as it is told to, and counts what it did.

Real HTTP over real sockets. Which item a request is about stands in its text as `item-NAME`. What
goes wrong is a list of faults per item, one for each call about it; after the list all is well.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic

ITEM = re.compile(r"item-(\w+)")
FAULTS = (
    "time-out",  # accepts, and never answers
    "drip",  # sends a whole reply, a byte now and then, for ever too slow
    "429",  # with the server's `retry_after`
    "500",
    "truncated",  # half a JSON document, its length as announced
    "cut",  # half of what was announced, then the connection closes
    "reset",  # closes without a word
    "null",  # a reply without text or finish reason
    "not-json",
    "deep",  # brackets without end
    "400",  # with the key and the prompt in its message
    "401",
    "nonsense",  # a whole reply that is no label
)


@dataclass
class Seen:
    """One request as it arrived."""

    item: str
    at: float
    path: str
    body: dict
    authorization: str | None


@dataclass
class FaultServer:
    """`with FaultServer(...) as server:`; `server.url` is its base."""

    faults: dict[str, list[str]] = field(default_factory=dict)
    """Per item, `*` for those not named."""
    answer: str = '{"label": "COMPLIANCE"}'
    answers: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[int, object]] = field(default_factory=dict)
    """Per item, a status and a body that every call about it gets."""
    unknown: set[str] = field(default_factory=set)
    """Fields of a body that are refused."""
    retry_after: str = "0.05"
    stuck_after: int | None = None
    """After so many whole replies no further one is sent: a place where a client can be killed."""
    gather: int = 0
    """Nothing is answered until so many requests have been open at once."""
    seen: list[Seen] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)
    """Whole replies sent, by item: what a provider would charge for."""
    most_at_once: int = 0
    stuck: threading.Event = field(default_factory=threading.Event)

    @property
    def calls(self) -> Counter[str]:
        """Requests by item."""
        return Counter(one.item for one in self.seen)

    def __enter__(self) -> FaultServer:
        self._lock = threading.Lock()
        self._open = 0
        self._over = threading.Event()
        self._gathered = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, seen: Seen) -> str:
        with self._lock:
            number = self.calls[seen.item]
            self.seen.append(seen)
            faults = self.faults.get(seen.item, self.faults.get("*", []))
            return faults[number] if number < len(faults) else "none"

    def may_answer(self, item: str) -> bool:
        with self._lock:
            if self.stuck_after is not None and self.paid.total() >= self.stuck_after:
                self.stuck.set()
                return False
            self.paid[item] += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    owner: FaultServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Silence."""

    def do_POST(self) -> None:
        owner = self.owner
        with owner._lock:
            owner._open += 1
            owner.most_at_once = max(owner.most_at_once, owner._open)
            if owner.most_at_once >= owner.gather:
                owner._gathered.set()
        try:
            self._respond()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner._lock:
                owner._open -= 1

    def _respond(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = body.get("prompt") or "\n".join(m["content"] for m in body.get("messages", []))
        found = ITEM.search(said) if isinstance(said, str) else None
        item = found[1] if found else "?"
        key = self.headers.get("authorization")
        owner._gathered.wait()
        if owner.unknown & set(body):
            owner.seen.append(Seen(item, monotonic(), self.path, body, key))
            self._send(400, {"error": {"message": "Unrecognized request argument supplied"}})
            return
        fault = owner.next_fault(Seen(item, monotonic(), self.path, body, key))
        if fault in ("none", "nonsense") and not owner.may_answer(item):
            fault = "time-out"
        if item in owner.errors:
            self._send(*owner.errors[item])
            return
        match fault:
            case "time-out":
                owner._over.wait()
                self.close_connection = True
            case "reset":
                self.close_connection = True
            case "429":
                self._send(429, {"error": {"message": "slow down"}}, retry=owner.retry_after)
            case "500":
                self._send(500, {"error": {"message": "out of order"}})
            case "400":
                self._send(400, {"error": {"message": f"bad: {key} said {said}"}})
            case "401":
                self._send(401, {"error": {"message": "no such key"}})
            case "not-json":
                self._bytes(200, b"<html>busy</html>")
            case "deep":
                self._bytes(200, b"[" * 200_000)
            case _:
                self._reply(body, said, item, fault)

    def _reply(self, body: dict, said: object, item: str, fault: str) -> None:
        owner = self.owner
        text: str | None = owner.answers.get(item, owner.answer)
        stop: str | None = "stop"
        if fault == "nonsense":
            text = "Banana. I would say it COMPLIED, or is a REFUSAL, or neither."
        if fault == "null":
            text = stop = None
        chat = self.path.endswith("/chat/completions")
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        used = {"prompt_tokens": len(said), "completion_tokens": len(text or "")}  # type: ignore[arg-type]
        whole = json.dumps(
            {
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": stop, **choice}],
                "usage": used,
            }
        ).encode()
        if fault == "truncated":
            self._bytes(200, whole[: len(whole) // 2])
        elif fault == "cut":
            self._bytes(200, whole[: len(whole) // 2], announced=len(whole))
            self.close_connection = True
        elif fault == "drip":
            self._bytes(200, b"", announced=len(whole))
            for i in range(len(whole)):
                if owner._over.wait(0.1):
                    return
                self.wfile.write(whole[i : i + 1])
                self.wfile.flush()
        else:
            self._bytes(200, whole)

    def _send(self, status: int, value: object, retry: str | None = None) -> None:
        self._bytes(status, json.dumps(value).encode(), retry=retry)

    def _bytes(
        self, status: int, content: bytes, announced: int | None = None, retry: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content) if announced is None else announced))
        if retry is not None:
            self.send_header("retry-after", retry)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
