"""A judge behind a server that fails: nothing lost, nothing paid twice, no label by accident."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from fault_server import FaultServer

from mechprobe.behavior.judges import (
    Calls,
    Exchange,
    judge_exchanges,
    load_of,
    open_judge,
    opened,
    read_exchanges,
)
from mechprobe.errors import CheckpointWarning, JudgeError, PromptFileError

FAST = Calls(timeout=2.5, attempts=3, concurrency=4, backoff=0.01)
SECRET = "the answer nobody may read twice"


def exchanges(n):
    return [Exchange(f"i{i}", f"question item-{i}", f"{SECRET} {i}", "t", "r") for i in range(n)]


def judged(server, items, path, calls=FAST, **options):
    judge = open_judge(f"openai:m@{server.url}", calls)
    try:
        with opened(path, **options) as cache:
            return judge_exchanges(judge, items, cache)
    finally:
        judge.close()


def labels(found):
    return {one.id: one.label for one in found.judgements}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.jsonl"


def test_through_every_fault_each_item_gets_its_own_label(path):
    faults = ["time-out", "drip", "429", "500", "truncated", "cut", "reset", "null", "nonsense"]
    wanted = ["FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR"] * 3
    with FaultServer(
        {str(i): [fault] for i, fault in enumerate(faults)},
        answers={str(i): json.dumps({"label": label}) for i, label in enumerate(wanted)},
    ) as server:
        found = judged(server, exchanges(12), path)
        again = judged(server, exchanges(12), path)
    assert labels(found) == {f"i{i}": label for i, label in enumerate(wanted)}
    assert again.judgements == found.judgements
    assert again.calls == 0
    # one call more for each fault; the nonsense reply was whole, so it was paid for
    assert server.calls == {str(i): 1 + (i < len(faults)) for i in range(12)}
    assert server.paid == {str(i): 1 + (i == 8) for i in range(12)}


def test_nonsense_is_unparsed_and_never_a_label(path):
    with FaultServer(answer="Banana. COMPLIANCE or FULL_REFUSAL, who knows?") as server:
        found = judged(server, exchanges(5), path)
        again = judged(server, exchanges(5), path)
    assert labels(found) == dict.fromkeys(labels(found))
    assert {one.status for one in found.judgements} == {"unparsed"}
    assert server.calls == {str(i): 2 for i in range(5)}  # asked again once, then left
    assert again.judgements == found.judgements


def test_an_error_is_not_kept_and_is_asked_again(path):
    with FaultServer({"1": ["500"] * 3, "2": ["400"]}) as server:
        found = judged(server, exchanges(4), path)
        statuses = {one.id: (one.status, one.label) for one in found.judgements}
        assert statuses == {
            "i0": ("labelled", "COMPLIANCE"),
            "i1": ("error", None),
            "i2": ("error", None),
            "i3": ("labelled", "COMPLIANCE"),
        }
        assert "HTTP 500" in found.judgements[1].problem
        again = judged(server, exchanges(4), path)
    assert set(labels(again).values()) == {"COMPLIANCE"}
    assert server.paid == {str(i): 1 for i in range(4)}


def test_a_killed_run_pays_for_no_finished_item_again(tmp_path, path):
    """SIGKILL after 7 of 12 replies; the next run asks for the other five alone."""
    script = tmp_path / "judge.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from pathlib import Path\n"
        "from mechprobe.behavior.judges import *\n"
        "items = [Exchange(f'i{i}', f'question item-{i}', f'answer {i}') for i in range(12)]\n"
        "judge = open_judge(sys.argv[1], Calls(timeout=600, concurrency=3))\n"
        "with opened(Path(sys.argv[2])) as cache:\n"
        "    judge_exchanges(judge, items, cache)\n"
    )
    items = [Exchange(f"i{i}", f"question item-{i}", f"answer {i}") for i in range(12)]
    with FaultServer(stuck_after=7) as server:
        command = [sys.executable, str(script), f"openai:m@{server.url}", str(path)]
        process = subprocess.Popen(command, env={**os.environ})
        assert server.stuck.wait(timeout=120)
        _until_lines(path, 7)  # all replies that were sent have arrived and been kept
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert server.paid.total() == 7
        with path.open("ab") as file:  # what a kill in the middle of a line would leave
            file.write(b'{"key": "torn')
        server.stuck_after = None
        before = Counter(server.calls)
        found = judged(server, items, path)
    assert set(labels(found).values()) == {"COMPLIANCE"}
    assert found.calls == 5
    assert server.paid == {str(i): 1 for i in range(12)}
    asked = server.calls - before
    assert asked.total() == 5
    assert len(path.read_text().splitlines()) == 12
    assert all(json.loads(line)["label"] for line in path.read_text().splitlines())


def _until_lines(path, n):
    import time

    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.01)
    raise AssertionError("the replies were never kept")


def test_killed_between_nonsense_and_asking_again_only_the_second_question_is_left(path):
    with FaultServer({"0": ["nonsense", "500", "500", "500"]}) as server:
        first = judged(server, exchanges(1), path)
        assert first.judgements[0].status == "error"
        second = judged(server, exchanges(1), path)
    assert labels(second) == {"i0": "COMPLIANCE"}
    messages = [seen.body["messages"][0]["content"] for seen in server.seen]
    assert ["not understood" in message for message in messages] == [False] + [True] * 4
    assert server.paid == {"0": 2}  # the nonsense, and the label


def test_equal_contents_are_asked_about_once(path):
    items = [Exchange(str(i), "question item-0", "same", row=f"r{i}") for i in range(6)]
    with FaultServer() as server:
        found = judged(server, items, path)
    assert [one.label for one in found.judgements] == ["COMPLIANCE"] * 6
    assert server.calls == {"0": 1}


def test_thinking_is_not_shown_and_what_never_ends_is_not_asked(path):
    items = [
        Exchange("a", "item-a", "<think>hidden</think>shown"),
        Exchange("b", "item-b", "<think>hidden for ever"),
    ]
    with FaultServer() as server:
        found = judged(server, items, path)
    assert labels(found) == {"a": "COMPLIANCE", "b": "UNCLEAR"}
    assert server.calls == {"a": 1}
    message = server.seen[0].body["messages"][0]["content"]
    assert "shown" in message
    assert "hidden" not in message


def test_another_prompt_model_or_temperature_is_another_judge(path):
    with FaultServer() as server:
        judged(server, exchanges(2), path)
        warm = Calls(timeout=2.5, backoff=0.01, temperature=None)
        judged(server, exchanges(2), path, warm)
        assert server.calls == {"0": 2, "1": 2}
        assert "temperature" not in server.seen[-1].body
    about = [open_judge(f"openai:{m}@http://127.0.0.1:9", FAST).about for m in "ab"]
    assert about[0] != about[1]


def test_the_load_is_known_before_anything_is_sent(path):
    items = [*exchanges(6), Exchange("i6", "question item-5", f"{SECRET} 5", "t", "other")]
    with FaultServer() as server:
        judge = open_judge(f"openai:m@{server.url}", FAST)
        with opened(path) as cache:
            load = load_of(judge, items, cache)
            assert server.seen == []
            assert (load.items, load.finished, load.calls) == (7, 0, 6)
            assert load.completion_tokens == 6 * 256
            judge_exchanges(judge, items[:4], cache)
            load = load_of(judge, items, cache)
            assert (load.items, load.finished, load.calls) == (7, 4, 2)
            left = [s for s in judge_exchanges(judge, items, cache).judgements if s.label is None]
        judge.close()
    assert left == []
    assert server.calls == {str(i): 1 for i in range(6)}
    # the fault server counts characters, which here are bytes
    sent = [len(seen.body["messages"][0]["content"]) for seen in server.seen[4:]]
    assert load.prompt_tokens == sum(-(-n // 4) for n in sent)


def test_a_wrong_key_stops_at_once_and_keeps_what_was_finished(path):
    with FaultServer({str(i): ["401"] * 9 for i in range(3, 50)}) as server:
        with pytest.raises(JudgeError, match="HTTP 401"):
            judged(server, exchanges(50), path)
        assert server.calls.total() < 3 + 2 * FAST.concurrency
    assert len(path.read_text().splitlines()) == server.paid.total() == 3


def test_a_server_that_wants_to_be_left_alone_is(path):
    with FaultServer({"*": ["429"] * 9}, retry_after="86400") as server:
        with pytest.raises(JudgeError, match="asking to wait 86400 s"):
            judged(server, exchanges(50), path)
        assert server.calls.total() < 2 * FAST.concurrency


def test_a_server_that_is_gone_is_given_up(path):
    calls = Calls(timeout=2.5, attempts=2, concurrency=4, backoff=0.001)
    with FaultServer({"*": ["500"] * 9}) as server:
        with pytest.raises(JudgeError, match="run the same command again"):
            judged(server, exchanges(100), path, calls)
        assert server.calls.total() <= 2 * (20 + 4)
    with pytest.raises(JudgeError, match="no connection"):
        judged(server, exchanges(100), path, calls)


def test_the_cache_holds_neither_prompt_nor_answer_unless_asked(tmp_path):
    quote = f"It said: {SECRET}"
    with FaultServer(answer=quote) as server:
        judged(server, exchanges(2), tmp_path / "a.jsonl")
        judged(server, exchanges(2), tmp_path / "b.jsonl", keep_replies=True)
    kept = (tmp_path / "a.jsonl").read_text()
    assert SECRET not in kept
    assert "item-" not in kept
    assert (tmp_path / "b.jsonl").read_text().count(SECRET) == 4


def test_two_runs_on_one_cache_are_refused(path):
    with opened(path), pytest.raises(JudgeError, match="another process"), opened(path):
        pass


def test_an_id_given_twice_is_refused(path):
    with FaultServer() as server, pytest.raises(PromptFileError, match="'i0' is given twice"):
        judged(server, [*exchanges(1), *exchanges(1)], path)
    assert server.seen == []


@pytest.mark.parametrize("field", ["id", "task", "row", "cluster"])
def test_a_name_that_no_file_can_carry_is_refused_before_anybody_is_asked(tmp_path, field):
    good = {"id": "a", "prompt": "half \ud83d", "text": "\ud83d", "task": "t", "row": "r"}
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps(good | {field: "x\ud83d"}) + "\n")
    with pytest.raises(PromptFileError, match=f"line 2: the field '{field}' holds half a char"):
        read_exchanges(file)
    file.write_text(json.dumps(good | {field: "whole \U0001f600"}))
    (one,) = read_exchanges(file)
    assert (getattr(one, field), one.text) == ("whole \U0001f600", "?")


def test_a_prompt_without_a_cluster_is_its_own(tmp_path):
    """NaN is what pandas writes for an empty field; null, nothing and "" mean the same."""
    line = {"prompt": "p", "text": "t"}
    none = [{"cluster": float("nan")}, {"cluster": None}, {"cluster": ""}, {}]
    file = tmp_path / "answers.jsonl"
    rows = [line | {"id": i} | some for i, some in enumerate(none + none)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.cluster for one in read_exchanges(file)] == list("01234567")
    file.write_text(json.dumps(line | {"id": "a", "cluster": 3, "row": float("nan"), "task": None}))
    (one,) = read_exchanges(file, row="m/c", task="refusal")
    assert (one.cluster, one.row, one.task) == ("3", "m/c", "refusal")


@pytest.mark.parametrize("field", ["id", "task", "row", "cluster"])
@pytest.mark.parametrize("value", [[], [1], {"a": 1}])
def test_a_name_that_is_a_list_or_an_object_is_one_line(tmp_path, field, value):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": "p", "text": "t"} | {field: value}))
    with pytest.raises(PromptFileError, match=f"line 1: the field '{field}' is no name"):
        read_exchanges(file)


@pytest.mark.parametrize("empty", [None, "", float("nan")])
def test_an_id_is_needed(tmp_path, empty):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"id": empty, "prompt": "p", "text": "t"}))
    with pytest.raises(PromptFileError, match="line 1: the field 'id' is empty"):
        read_exchanges(file)


def test_a_greedy_judge_leaves_nothing_to_the_defaults_of_its_server(path):
    with FaultServer() as server:
        judged(server, exchanges(2), path)
        sent = server.seen[-1].body
    assert sent["temperature"] == 0.0
    assert (sent["repetition_penalty"], sent["repeat_penalty"], sent["top_k"]) == (1.0, 1.0, -1)
    assert open_judge("openai:m@http://127.0.0.1:9", FAST).about["samplers"] == "neutral"
    # a hosted API has no such defaults, and refuses the fields
    assert "samplers" not in open_judge("openai:m@https://api.openai.com", asks=False).about


def test_a_strict_server_is_asked_again_without_what_it_does_not_know(path):
    with FaultServer() as server:
        server.unknown = {"repetition_penalty"}
        with pytest.warns(CheckpointWarning, match="does not take top_k"):
            found = judged(server, exchanges(6), path)
        assert set(labels(found).values()) == {"COMPLIANCE"}
        again = [one for one in server.seen if "repetition_penalty" not in one.body]
        assert len(again) == 6
        assert again[0].body["frequency_penalty"] == 0.0
