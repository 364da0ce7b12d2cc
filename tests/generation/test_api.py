"""The client against a server that fails in every way it can, over real sockets."""

import contextlib
import json
import logging
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from mechprobe.errors import GenerationError, SpecError
from mechprobe.generation.api import ApiClient, ApiError, Endpoint, Reply, Request
from mechprobe.generation.endpoint import read_reply
from mechprobe.generation.server_errors import said_by

sys.path.insert(0, str(Path(__file__).parent))
from fault_server import FaultServer

KEY = "sk-very-secret-0123456789"


def _client(server, *, variable="", **options):
    settings = {"timeout": 2.5, "attempts": 3, "concurrency": 4, "backoff": 0.01} | options
    return ApiClient(Endpoint("m", server.url, variable), **settings)


def _ask(item):
    return Request.chat([{"role": "user", "content": f"about item-{item}, please"}], max_tokens=9)


def _everything(error):
    """All that could be printed of an error: itself, its causes, what it holds."""
    found, seen = [], error
    while seen is not None:
        found += [str(seen), repr(seen), repr(seen.__dict__)]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(found)


@pytest.mark.parametrize(
    "fault",
    ["time-out", "drip", "429", "500", "truncated", "cut", "reset", "null", "not-json", "deep"],
)
def test_what_passes_is_tried_again(fault):
    with FaultServer({"a": [fault, fault]}) as server, _client(server) as client:
        reply = client.send(_ask("a"))
    assert reply.text == '{"label": "COMPLIANCE"}'
    assert (server.calls["a"], server.paid["a"], client.retries) == (3, 1, 2)


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("time-out", "time-out", None),
        ("drip", "time-out", None),
        ("429", "rate limit", 429),
        ("500", "server", 500),
        ("truncated", "garbled", 200),
        ("cut", "connection", None),
        ("reset", "connection", None),
        ("null", "garbled", 200),
        ("not-json", "garbled", 200),
        ("deep", "garbled", 200),
    ],
)
def test_what_does_not_pass_is_an_error_and_never_a_text(fault, kind, status):
    timeout = 0.5 if kind == "time-out" else 5.0
    with (
        FaultServer({"a": [fault] * 9}) as server,
        _client(server, attempts=2, timeout=timeout) as client,
    ):
        with pytest.raises(ApiError) as caught:
            client.send(_ask("a"))
        ((_, value),) = client.map([_ask("a")])
    assert (caught.value.kind, caught.value.status) == (kind, status)
    assert isinstance(value, ApiError)
    assert (value.kind, value.passing) == (kind, True)
    assert server.calls["a"] == 4
    assert "\n" not in str(value)


@pytest.mark.parametrize(("fault", "for_all"), [("400", False), ("401", True)])
def test_a_refused_request_is_not_repeated(fault, for_all):
    with (
        FaultServer({"a": [fault] * 9}) as server,
        _client(server) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.send(_ask("a"))
    assert (caught.value.kind, caught.value.for_all) == ("refused", for_all)
    assert server.calls["a"] == 1


def test_one_bad_item_harms_no_other():
    faults = {"3": ["500"] * 9, "5": ["400"], "7": ["429"], "8": ["truncated"], "9": ["cut"]}
    answers = {str(i): f"answer {i}" for i in range(12)}
    with FaultServer(faults, answers=answers) as server, _client(server) as client:
        found = dict(client.map(_ask(i) for i in range(12)))
    assert sorted(found) == list(range(12))
    assert {i for i, one in found.items() if isinstance(one, ApiError)} == {3, 5}
    for i in set(range(12)) - {3, 5}:
        assert found[i].text == f"answer {i}"
    assert server.paid == {str(i): 1 for i in set(range(12)) - {3, 5}}


def test_no_more_requests_at_once_than_asked_for():
    with FaultServer(gather=3) as server, _client(server, concurrency=3) as client:
        found = list(client.map(_ask(i) for i in range(9)))
    assert len(found) == 9
    assert server.most_at_once == 3
    with FaultServer() as server, _client(server, concurrency=1) as client:
        assert [i for i, _ in client.map(_ask(i) for i in range(5))] == list(range(5))
        assert server.most_at_once == 1


def test_retry_after_holds_back_every_request():
    with (
        FaultServer({"0": ["429"]}, retry_after="0.7") as server,
        _client(server, concurrency=1) as client,
    ):
        list(client.map(_ask(i) for i in range(3)))
    first, second, *_ = [seen.at for seen in server.seen]
    assert second - first >= 0.7  # by the server's clock, which starts before its answer does
    assert server.calls == {"0": 2, "1": 1, "2": 1}


def test_retry_after_may_be_a_date():
    until = int(time.time()) + 3
    after = formatdate(until, usegmt=True)
    with FaultServer({"a": ["429"]}, retry_after=after) as server, _client(server) as client:
        client.send(_ask("a"))
    assert server.seen[1].at + (time.time() - time.monotonic()) >= until - 0.01


def test_a_wait_too_long_is_left_to_a_later_run():
    with (
        FaultServer({"a": ["429"]}, retry_after="86400") as server,
        _client(server) as client,
        pytest.raises(ApiError, match="asking to wait 86400 s"),
    ):
        client.send(_ask("a"))
    assert server.calls["a"] == 1


def test_requests_per_minute_spaces_attempts_and_repeats_alike():
    with (
        FaultServer({"0": ["500"]}) as server,
        _client(server, requests_per_minute=600, concurrency=4) as client,
    ):
        start = time.monotonic()
        list(client.map(_ask(i) for i in range(4)))
    assert len(server.seen) == 5
    assert all(seen.at - start >= i * 0.1 for i, seen in enumerate(server.seen))


def test_taking_no_more_leaves_the_rest_unsent():
    """A caller that stops has sent one window, not the whole list."""
    with FaultServer() as server, _client(server, concurrency=2) as client:
        for _, reply in client.map(_ask(i) for i in range(50)):
            assert isinstance(reply, Reply)
            break
    assert server.calls.total() <= 3


def test_the_key_is_sent_and_said_nowhere(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    faults = {"a": ["400"], "b": ["500"] * 9, "c": ["truncated"] * 9, "d": ["reset"] * 9}
    with FaultServer(faults) as server, _client(server, variable="MY_KEY") as client:
        found = dict(client.map(map(_ask, "abcde")))
        shown = repr(client) + repr(client.endpoint) + str(client.endpoint)
    assert {seen.authorization for seen in server.seen} == {f"Bearer {KEY}"}
    assert [isinstance(found[i], ApiError) for i in range(5)] == [True] * 4 + [False]
    text = shown + caplog.text + "".join(_everything(found[i]) for i in range(4))
    assert KEY not in text
    assert "please" not in "".join(_everything(found[i]) for i in range(4))


@pytest.mark.parametrize(
    ("key", "text", "kept"),
    [
        (KEY, f"a {KEY} b", "a [key] b"),
        (KEY, KEY + KEY, "[key]"),
        (KEY, f"{KEY[:14]}... {KEY[5:].upper()}", "[key]... [key]"),
        (KEY, "sk-very-good, a secret", "sk-very-good, a secret"),
        ("EMPTY", "EMPTY, emptyEMPTY", "[key], emptyEMPTY"),
        ("a.b[c", "axb[c a.b[c", "axb[c [key]"),
        ("", "anything", "anything"),
    ],
)
def test_a_key_is_blanked_wherever_a_reply_quotes_it(key, text, kept):
    choice = {"finish_reason": "stop", "text": text, "token_ids": [1], "x": [{text: text}]}
    found = read_reply(json.dumps({"choices": [choice], "model": "m"}), key)
    assert found.text == kept
    assert found.choice["x"] == [{kept: kept}]
    assert (found.choice["token_ids"] is None) is (kept != text)  # ids spell it too


@pytest.mark.parametrize("field", ["message", "type", "code"])
def test_no_part_of_the_key_is_said_wherever_a_server_puts_it(monkeypatch, field):
    key = "sk-proj-ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij"
    monkeypatch.setenv("MY_KEY", key)
    texts = ["x" * at + " " + key for at in range(0, 251, 50)]
    texts += [key[8:], key[20:28], key[8:].lower(), f"invalid_{key[30:]}"]
    errors = {str(i): (400, {"error": {field: text}}) for i, text in enumerate(texts)}
    with FaultServer(errors=errors) as server, _client(server, variable="MY_KEY") as client:
        found = [str(error).lower() for _, error in client.map(map(_ask, range(len(texts))))]
    assert len(found) == len(texts)
    assert all("http 400" in error for error in found)
    parts = {key[i : i + 8].lower() for i in range(len(key) - 7)}
    # at every place, so that no cut of a message can leave a piece of it
    bodies = ({"error": {field: "x" * at + " " + key + " is bad"}} for at in range(251))
    found += [said_by(body, key).lower() for body in bodies]
    assert [error for error in found if any(part in error for part in parts)] == []


def test_of_an_error_a_server_names_its_kind_and_its_prose_is_not_shown():
    prose = "Failed to parse input at pos 0: Sure, first take the flour, then the red powder"
    errors = {
        "a": (500, {"error": {"code": 500, "type": "server_error", "message": prose}}),
        "b": (400, {"error": {"code": "unsupported_value", "message": "Unsupported: temperature"}}),
        "c": (400, {"error": {"type": prose, "code": prose, "message": [prose]}}),
        "d": (500, {"error": prose}),
        "e": (404, {"error": {"message": "The model `m` does not exist"}}),
        "f": (400, [prose]),
        "g": (400, {"error": {"message": "maximum context length is 9, max_tokens too large"}}),
    }
    with FaultServer(errors=errors) as server, _client(server, attempts=1) as client:
        found = {n: str(error) for n, error in client.map(map(_ask, errors))}
        where = f"{client.endpoint}: HTTP "
    assert [found[n].removeprefix(where) for n in range(len(errors))] == [
        "500 (server_error)",
        "400 (unsupported_value, it is about the temperature)",
        "400",
        "500",
        "404 (there is no such model)",
        "400",
        "400 (it is about the length)",
    ]


@pytest.mark.parametrize("key", ["sk-proj-AB\u2019CD", "sk-a b", "sk-a\nb"])
def test_what_no_header_can_carry_is_no_key(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(SpecError, match="MY_KEY holds") as caught:
        Endpoint("m", "http://127.0.0.1:9/v1", "MY_KEY").key()
    assert "sk-" not in str(caught.value)


def test_no_key_is_sent_to_a_server_that_was_not_named_for_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer() as server, _client(server) as client:
        client.send(_ask("a"))
    assert KEY not in (server.seen[0].authorization or "")


@pytest.mark.parametrize(
    ("named", "model"),
    [
        (KEY, ""),
        (f"m-{KEY[6:14].upper()}", ""),
        ("two\nlines", ""),
        ("x" * 201, ""),
        ("half \ud800", ""),
        (7, ""),
        (None, ""),
        ("org/Some-Model 2.5:7b@q4_K (GGUF)", "org/Some-Model 2.5:7b@q4_K (GGUF)"),
    ],
)
def test_no_part_of_a_key_is_the_name_of_a_model(named, model):
    body = {"model": named, "choices": [{"text": "fine", "finish_reason": "stop"}]}
    assert read_reply(json.dumps(body), KEY) == Reply("fine", "stop", None, None, model)


def test_a_server_that_names_its_model_by_the_key_is_given_no_name(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with (
        FaultServer() as server,  # names the model that it was asked for
        ApiClient(Endpoint(KEY, server.url, "MY_KEY")) as client,
    ):
        assert client.send(_ask("a")).model == ""


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with FaultServer() as server:
        with pytest.raises(SpecError, match="as MY_KEY"):
            _client(server, variable="MY_KEY")
        assert server.seen == []


def test_bodies_are_what_was_asked_for():
    """Token ids go out as they are, options of one kind of server beside the usual ones."""
    with FaultServer(answer="text") as server, _client(server) as client:
        client.complete((5, 6, 7), max_tokens=4, logprobs=3, seed=11, top_k=1)
        reply = client.chat([{"role": "user", "content": "hi"}], max_tokens=8, temperature=None)
    ids, chat = [seen.body for seen in server.seen]
    assert ids == {
        "model": "m", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0.0, "seed": 11,
        "logprobs": 3, "top_k": 1,
    }  # fmt: skip
    assert chat == {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8,
    }  # fmt: skip
    assert [seen.path for seen in server.seen] == ["/v1/completions", "/v1/chat/completions"]
    assert reply == Reply("text", "stop", 2, 4, "m")
    assert reply.choice["message"]["content"] == "text"


def test_closing_ends_what_is_on_its_way():
    with FaultServer({"*": ["time-out"] * 9}) as server:
        client = _client(server, timeout=600, concurrency=2)
        found = []
        replies = client.map(_ask(i) for i in range(2))
        reader = threading.Thread(target=lambda: _collect(replies, found), daemon=True)
        reader.start()
        while server.calls.total() < 2:
            time.sleep(0.01)
        client.close()
        client.close()
        reader.join(timeout=30)
        assert not reader.is_alive()
    assert found == []


def _collect(replies, into):
    from concurrent.futures import CancelledError

    with contextlib.suppress(CancelledError):
        into.extend(replies)


@pytest.mark.parametrize(
    ("text", "model", "url", "variable"),
    [
        ("openai:gpt-x@https://api.openai.com/v1", "gpt-x", "https://api.openai.com/v1",
         "OPENAI_API_KEY"),
        ("openai:gemma3:12b@http://localhost:11434", "gemma3:12b", "http://localhost:11434/v1", ""),
        ("openai:c@https://api.anthropic.com/v1/", "c", "https://api.anthropic.com/v1",
         "ANTHROPIC_API_KEY"),
        ("openai:org/m@2@http://gpu7:8000/v1#LAB_KEY", "org/m@2", "http://gpu7:8000/v1", "LAB_KEY"),
    ],
)  # fmt: skip
def test_an_endpoint_is_read_from_its_spelling(text, model, url, variable):
    found = Endpoint.parse(text)
    assert (found.model, found.url, found.key_variable) == (model, url, variable)
    assert Endpoint.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["openai:m", "m@http://x", "openai:@http://x", "openai:m@ftp://x", "openai:m@http://x#",
     f"openai:m@https://user:{KEY}@host/v1", f"openai:m@https://host/v1?key={KEY}"],
)  # fmt: skip
def test_a_wrong_endpoint_is_one_line_without_secrets(text):
    with pytest.raises(SpecError) as caught:
        Endpoint.parse(text)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://[zz]/", "http://[zz]:8000/v1", f"http://{'a' * 64}.org/v1",
     "http://a..b", f"http://{'a.' * 130}b", "http://h:99999999", "http://h:65536/v1", "http://h:0",
     "http://h:80a", "http:///v1", "http://256.1.1.1", "http://xn--/", "http://h\\v1", "http://:80",
     "http://h\x00/v1"],
)  # fmt: skip
def test_a_malformed_url_is_one_line_wherever_it_is_named(url, tmp_path, capsys):
    from mechprobe.cli.app import run as cli

    with pytest.raises(SpecError, match=r"not the URL of a server: \w") as caught:
        Endpoint.parse(f"openai:m@{url}")
    assert "\n" not in str(caught.value)
    rows = tmp_path / "x.jsonl"
    rows.write_text('{"id": "1", "prompt": "Hi", "text": "Hello"}\n')
    for command in (
        ["judge", str(rows), "-j", f"openai:m@{url}", "-o", str(tmp_path / "o")],
        ["generate", "--model", "m", "--engine", url, "--prompt", "Hi"],
    ):
        assert cli(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_host_is_an_address_as_well():
    found = Endpoint.parse("openai:m@http://[::1]:8000")
    assert found.url == "http://[::1]:8000/v1"


def test_senseless_numbers_are_refused():
    endpoint = Endpoint("m", "http://127.0.0.1:9/v1")
    for bad in (
        {"timeout": 0},
        {"attempts": 0},
        {"concurrency": 0},
        {"requests_per_minute": 0},
        {"timeout": float("nan")},
        {"requests_per_minute": float("nan")},
    ):
        with pytest.raises(GenerationError, match="above 0"):
            ApiClient(endpoint, **bad)
