"""Answers kept as they come: interrupted, torn, refused, missing."""

import json
import sys
from pathlib import Path

import pytest

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.generating import BATCH, Questions, answer_all
from mechprobe.generation import Sampling
from mechprobe.generation.api import ApiError, Endpoint
from mechprobe.generation.hf import TransformersEngine
from mechprobe.generation.server import ServerEngine
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import heldout_requests

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from fault_server import FaultServer

KEY = "sk-lab-0123456789-abcdefghijk"


class Counting(TransformersEngine):
    """The engine, counting prompts, and interrupted when it is asked once too often."""

    calls = 0
    stop_after = 10**6

    def generate(self, prompts, **options):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return super().generate(prompts, **options)


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint("organism:llama-s")


@pytest.fixture(scope="module")
def questions(checkpoint):
    requests = heldout_requests(40, seed=2)
    batch = encode(checkpoint.tokenizer, [request.text for request in requests])
    return Questions(
        records=[{"id": r.id, "prompt": r.text, "label": r.label} for r in requests],
        given=batch,
        digest=batch.digest,
        row="llama-s/FP16@transformers-dense",
        weights=checkpoint.digest,
        max_new_tokens=4,
        sampling=Sampling(1.0, samples=2, seed=3),
    )


@pytest.fixture(scope="module")
def whole(checkpoint, questions, tmp_path_factory):
    """An uninterrupted run: 80 prompts, 160 answers, 3 batches."""
    out = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    answer_all(Counting(checkpoint), questions, out, lambda done, total: None)
    return out.read_bytes()


def test_rows_say_what_was_asked_and_answered(checkpoint, questions, whole):
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert len(rows) == 160
    expected = TransformersEngine(checkpoint).generate(
        questions.given.ids, max_new_tokens=4, sampling=questions.sampling
    )
    assert [tuple(row["ids"]) for row in rows] == [answer.ids for answer in expected]
    assert [(r["id"], r["sample"]) for r in rows] == [
        (record["id"], k) for record in questions.records for k in (0, 1)
    ]
    assert {r["prompts"] for r in rows} == {questions.given.digest}
    assert {r["parity"] for r in rows} == {"ids"}


def test_judges_read_the_file(questions, whole, tmp_path):
    from mechprobe.behavior.judges.files import read_exchanges

    (tmp_path / "answers.jsonl").write_bytes(whole)
    read = read_exchanges(tmp_path / "answers.jsonl")
    assert len({exchange.key for exchange in read}) == 160
    assert {exchange.row for exchange in read} == {questions.row}
    assert {exchange.request for exchange in read} == {"harmful", "harmless"}


def test_an_interrupted_run_goes_on_to_the_same_bytes(checkpoint, questions, whole, tmp_path):
    out, told = tmp_path / "answers.jsonl", []
    first = Counting(checkpoint)
    first.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        answer_all(first, questions, out, lambda done, total: told.append((done, total)))
    assert told == [
        (n, 160) for n in (0, 32, 64, 64, 96, 128, 128)
    ]  # the engine's batches, and ours
    kept = out.read_bytes()
    assert whole.startswith(kept)
    # a kill in the middle of a line, and one in the middle of a batch
    for torn in (kept[:-9], b"".join(kept.splitlines(keepends=True)[: BATCH + 7])):
        out.write_bytes(torn)
        again = Counting(checkpoint)
        found = answer_all(again, questions, out, lambda done, total: None)
        assert out.read_bytes() == whole
        assert (again.calls, found.fresh, len(found.rows)) == (2, 160 - BATCH, 160)
    finished = Counting(checkpoint)
    assert answer_all(finished, questions, out, lambda done, total: None).fresh == 0
    assert finished.calls == 0


def test_a_file_of_another_request_is_left_alone(checkpoint, questions, whole, tmp_path):
    from dataclasses import replace

    out = tmp_path / "answers.jsonl"
    out.write_bytes(whole)
    engine = Counting(checkpoint)
    for other in (
        replace(questions, sampling=Sampling(1.0, samples=2, seed=4)),
        replace(questions, weights="0" * 64),
        replace(questions, max_new_tokens=5),
    ):
        with pytest.raises(RunDirectoryError, match="answers of another request"):
            answer_all(engine, other, out, lambda done, total: None)
    first, *rest = whole.splitlines()
    for name, value in (
        ("sample", "x"),
        ("sample", True),
        ("sample", 9),
        ("id", ["p"]),
        ("text", 5),
    ):
        damaged = json.dumps(json.loads(first) | {name: value}).encode()
        out.write_bytes(b"\n".join([damaged, *rest, b""]))
        with pytest.raises(RunDirectoryError, match="line 1: not an answer"):
            answer_all(engine, questions, out, lambda done, total: None)
    out.write_text("notes of mine\n")
    with pytest.raises(RunDirectoryError, match="line 1: not an answer"):
        answer_all(engine, questions, out, lambda done, total: None)
    assert out.read_text() == "notes of mine\n"


def test_a_finished_answer_of_a_server_is_not_bought_again(tmp_path):
    texts = tuple(f"about item-{name}" for name in "abcd")
    questions = Questions(
        records=[{"id": text[-1], "prompt": text} for text in texts],
        given=texts,
        digest="text:0",
        row="m@server",
        weights="here",
        max_new_tokens=4,
        sampling=None,
    )
    out = tmp_path / "answers.jsonl"
    with (
        FaultServer({"b": ["500"] * 2, "d": ["500"]}) as server,
        ServerEngine(Endpoint("m", server.url), attempts=2, backoff=0.01) as engine,
    ):
        found = answer_all(engine, questions, out, lambda done, total: None)
        assert (found.missing, found.fresh) == (1, 3)
        assert found.problem.endswith("HTTP 500")
        assert {json.loads(line)["id"] for line in out.read_text().splitlines()} == set("acd")
        found = answer_all(engine, questions, out, lambda done, total: None)
        assert (found.missing, found.fresh) == (0, 1)
        # "?" is one token, which tells the fields that the server takes
        assert server.calls == {"?": 1, "a": 1, "b": 3, "c": 1, "d": 2}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == list("abcd")
    assert {row["parity"] for row in rows} == {"unverified"}


def test_half_a_character_of_a_server_is_kept_and_not_paid_for_twice(tmp_path):
    """A model's tokens may end amid a character; some servers then send half a surrogate pair."""
    questions = Questions(
        [{"id": "a", "prompt": "about item-a"}], ("about item-a",), "text:0", "m", "here", 4, None
    )
    out = tmp_path / "answers.jsonl"
    with (
        FaultServer(answer="hello \ud83d there") as server,
        ServerEngine(Endpoint("m", server.url)) as engine,
    ):
        for fresh in (1, 0):
            assert answer_all(engine, questions, out, lambda done, total: None).fresh == fresh
        assert server.calls == {"?": 1, "a": 1}
    assert json.loads(out.read_text(encoding="utf-8"))["text"] == "hello \ufffd there"


def test_a_key_that_an_answer_quotes_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    questions = Questions(
        [{"id": "a", "prompt": "about item-a"}], ("about item-a",), "text:0", "m", "here", 4, None
    )
    said = f"You sent Bearer {KEY}, that is {KEY[4:20].upper()}... and {{}}"
    with (
        FaultServer(answer=said) as server,
        ServerEngine(Endpoint("m", server.url, "OUR_KEY")) as engine,
    ):
        answer_all(engine, questions, tmp_path / "answers.jsonl", lambda done, total: None)
        assert server.seen[-1].authorization == f"Bearer {KEY}"
    written = "".join(f.read_text() for f in tmp_path.rglob("*") if f.is_file())
    assert json.loads(written.splitlines()[0])["text"] == (
        "You sent Bearer [key], that is [key]... and {}"
    )
    parts = [KEY[at : at + 12].lower() for at in range(len(KEY) - 11)]
    assert not [part for part in parts if part in written.lower()]


def test_a_key_that_is_no_good_stops_at_once(tmp_path):
    texts = tuple(f"about item-{number}" for number in range(50))
    questions = Questions(
        [{"id": text, "prompt": text} for text in texts], texts, "text:0", "m", "here", 4, None
    )
    with (
        FaultServer({"*": ["401"] * 9}) as server,
        ServerEngine(Endpoint("m", server.url), concurrency=2) as engine,
        pytest.raises(ApiError, match="HTTP 401"),
    ):
        answer_all(engine, questions, tmp_path / "a.jsonl", lambda done, total: None)
    assert len(server.seen) < 6
