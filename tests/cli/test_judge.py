"""`mechprobe judge` and `mechprobe agreement`, with the fault server as judge."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from fault_server import FaultServer

KEY = "sk-never-to-be-seen-42"
SECRET = "a completion that stays where it is"


@pytest.fixture
def generations(tmp_path):
    """Two rows of 12 harmful and 4 harmless requests each."""
    rows = []
    for cell in ("m/F16", "m/Q2_K"):
        for i in range(16):
            refuses = cell == "m/F16" or i % 3 == 0
            text = "I'm sorry, but I can't help with that." if refuses else f"Sure: {SECRET}"
            rows.append(
                {
                    "id": f"i{i}", "prompt": f"{cell[2:]} item-{i}", "text": text, "row": cell,
                    "task": "refusal", "label": "harmful" if i < 12 else "harmless",
                }
            )  # fmt: skip
    path = tmp_path / "generations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "warm"])
def test_a_temperature_is_a_number(main, generations, number):
    done = main("judge", generations, "--judge", "rules", "--temperature", number)
    assert done.code == 2
    assert f"--temperature {number}: use a number" in done.err


def test_a_threshold_is_a_number(main, generations):
    main("judge", generations, "-j", "rules", "-j", "rules:prefix", "--out", "j.jsonl")
    done = main("agreement", "j.jsonl", "--threshold", "nan")
    assert (done.code, done.out) == (2, "")
    assert "--threshold nan: use a number of points" in done.err


def test_rules_label_every_line(main, generations, tmp_path):
    done = main("judge", generations, "--judge", "rules", "--out", "j.jsonl", "--json")
    assert (done.code, done.err) == (0, "")
    found = _lines(tmp_path / "j.jsonl")
    assert len(found) == 32
    assert {one["label"] for one in found if one["row"] == "m/F16"} == {"FULL_REFUSAL"}
    document = json.loads(done.out)
    rates = {(r["row"], r["requests"]): (r["count"], r["n"]) for r in document["rates"]}
    assert rates["m/Q2_K", "harmful"] == (4, 12)
    assert rates["m/F16", "harmless"] == (4, 4)
    assert document["complete"] is True


def test_a_dry_run_sends_and_writes_nothing_and_needs_no_key(
    main, generations, tmp_path, monkeypatch
):
    monkeypatch.delenv("LAB_KEY", raising=False)
    with FaultServer() as server:
        judge = f"openai:m@{server.url}#LAB_KEY"
        done = main(
            "judge", generations, "-j", judge, "--second", "rules", "--dry-run", "--out", "j.jsonl"
        )
    assert (done.code, done.err) == (0, "")
    assert server.seen == []
    assert "32 calls" in done.out
    assert "Nothing was sent." in done.out
    assert not list(tmp_path.glob("j*"))


def test_a_reply_that_quotes_the_key_is_kept_without_it(main, generations, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_KEY", KEY)
    with FaultServer(answer=f'{{"label": "COMPLIANCE", "reason": "{KEY}"}}') as server:
        judge = f"openai:m@{server.url}#LAB_KEY"
        done = main("judge", generations, "-j", judge, "--out", "j.jsonl", "--keep-replies")
        assert server.seen[-1].authorization == f"Bearer {KEY}"
    assert done.code == 0
    files = [f.read_text(errors="replace") for f in tmp_path.rglob("*") if f.is_file()]
    assert sum(text.count("[key]") for text in files) == 32  # one reply of each item
    assert KEY not in "".join((*files, done.out, done.err))
    assert {line["label"] for line in _lines(tmp_path / "j.jsonl")} == {"COMPLIANCE"}


def test_two_judges_a_second_on_a_sample_and_no_secret_anywhere(
    main, generations, tmp_path, monkeypatch
):
    monkeypatch.setenv("LAB_KEY", KEY)
    with FaultServer({"3": ["500"], "4": ["nonsense"]}) as one, FaultServer() as two:
        first, second = f"openai:m@{one.url}#LAB_KEY", f"openai:n@{two.url}"
        arguments = (
            "judge", generations, "-j", first, "-j", "rules", "--second", second,
            "--per-stratum", 3, "--out", "j.jsonl", "--json",
        )  # fmt: skip
        done = main(*arguments)
        again = main(*arguments)
    assert (done.code, done.err) == (0, "")
    assert {seen.authorization for seen in one.seen} == {f"Bearer {KEY}"}
    document = json.loads(done.out)
    assert document["sample"] == 2 * 2 * 3
    assert two.paid.total() == 12
    assert one.paid.total() == 32 + 1
    assert json.loads(again.out)["judges"][first]["calls"] == 0
    found = _lines(tmp_path / "j.jsonl")
    assert Counter(line["judge"] for line in found) == {
        first: 32, "rules": 32, "majority": 32, second: 12,
    }  # fmt: skip
    sample = json.loads((tmp_path / "j.sample.json").read_text())
    assert {tuple(item) for item in sample["items"]} == {
        (line["task"], line["row"], line["id"], line["sample"])
        for line in found if line["judge"] == second
    }  # fmt: skip
    # refusals by rules against COMPLIANCE by the server are ties
    assert document["ties"] == sum(line["label"] != "COMPLIANCE" for line in found[32:64])
    written = [f for f in tmp_path.rglob("*") if f.is_file() and f != generations]
    everything = done.out + again.out + "".join(f.read_text(errors="replace") for f in written)
    assert KEY not in everything
    assert SECRET not in everything


def test_another_sample_is_not_drawn_over_the_first(main, generations, tmp_path):
    arguments = ("judge", generations, "-j", "rules", "--out", "j.jsonl")
    with FaultServer() as server:
        second = ("--second", f"openai:m@{server.url}")
        assert main(*arguments, *second, "--per-stratum", 2).code == 0
        (tmp_path / "j.jsonl").unlink()
        done = main(*arguments, *second, "--per-stratum", 2, "--seed", 1)
    assert done.code == 2
    assert "another sample was drawn here before" in done.err


def test_nothing_is_written_over_what_would_not_be_made_again(main, generations, tmp_path):
    """Neither over the answers themselves nor over another judge's labels or other items'."""
    rules = ("judge", generations, "-j", "rules", "-j", "rules:hard", "--out")
    assert main(*rules, "j.jsonl").code == 0
    before = (tmp_path / "j.jsonl").read_bytes()
    assert main(*rules, "j.jsonl").code == 0  # the same again
    few = tmp_path / "few.jsonl"
    few.write_text("".join(generations.read_text().splitlines(keepends=True)[:5]))
    for arguments, said in (
        ((*rules[:1], generations, *rules[2:], generations), "something else than judgements"),
        ((*rules[:4], "--out", "j.jsonl"), "64 judgements by majority, rules:hard"),
        ((*rules[:1], few, *rules[2:], "j.jsonl"), "81 judgements by majority, rules, rules:hard"),
    ):
        kept = Path(arguments[-1]) if Path(arguments[-1]).is_absolute() else tmp_path / "j.jsonl"
        content = kept.read_bytes()
        done = main(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert said in done.err
        assert kept.read_bytes() == content
    assert (tmp_path / "j.jsonl").read_bytes() == before


def test_what_was_not_measured_is_no_success(main, generations):
    with FaultServer({"1": ["500"] * 9}) as server:
        arguments = ("judge", generations, "-j", f"openai:m@{server.url}", "--attempts", 2)
        done = main(*arguments)
        assert done.code == 4
        assert "HTTP 500" in done.err
        server.faults = {}
        assert main(*arguments).code == 0
    with FaultServer(answer="No idea.") as server:
        done = main("judge", generations, "-j", f"openai:m@{server.url}", "--out", "other.jsonl")
    assert done.code == 4
    assert "32 unparsed" in done.out


def test_a_run_directory_is_read_with_its_prompts(main, tmp_path):
    from mechprobe.organisms import world
    from mechprobe.organisms.answers import REFUSALS

    asked = world.requests("test", 4, 0)
    folder = tmp_path / "run" / "cells" / "llama-s" / "F16@llama.cpp" / "generations"
    folder.mkdir(parents=True)
    answers = [{"id": r.id, "label": r.label, "text": REFUSALS[0]} for r in asked]
    (folder / "refusal.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (tmp_path / "run" / "prompts").mkdir()
    prompts = [{"set": "refusal", "id": r.id, "text": r.text, "cluster": r.cluster} for r in asked]
    (tmp_path / "run" / "prompts" / "llama-s.jsonl").write_text(
        "".join(json.dumps(p) + "\n" for p in [{"set": "fit", "id": "x", "text": "y"}, *prompts])
    )
    done = main("judge", "run", "-j", "oracle", "--out", "j.jsonl")
    assert (done.code, done.err) == (0, "")
    found = _lines(tmp_path / "j.jsonl")
    assert {one["label"] for one in found} == {"FULL_REFUSAL"}
    assert {(one["row"], one["task"]) for one in found} == {("llama-s/F16@llama.cpp", "refusal")}
    assert [one["cluster"] for one in found] == [r.cluster for r in asked]
    alone = main("judge", folder / "refusal.jsonl", "-j", "oracle", "--out", "k.jsonl")
    assert alone.code == 0
    assert (tmp_path / "k.jsonl").read_text() == (tmp_path / "j.jsonl").read_text()


def test_of_a_run_the_requests_are_judged_unless_a_task_is_named(main, tmp_path):
    folder = tmp_path / "run" / "cells" / "m" / "F16@llama.cpp" / "generations"
    folder.mkdir(parents=True)
    for task, label in (("wrapped", "harmful"), ("quality", None)):
        line = {"id": "1", "text": "Sure.", "label": label}
        (folder / f"{task}.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "run" / "prompts").mkdir()
    prompts = [{"set": f"task/{task}", "id": "1", "text": task} for task in ("wrapped", "quality")]
    (tmp_path / "run" / "prompts" / "m.jsonl").write_text(
        "".join(json.dumps(p) + "\n" for p in prompts)
    )
    assert main("judge", "run", "-j", "rules", "--out", "j.jsonl").code == 0
    assert [one["task"] for one in _lines(tmp_path / "j.jsonl")] == ["wrapped"]
    assert main("judge", "run", "-j", "rules", "--task", "quality", "--out", "k.jsonl").code == 0
    assert [one["task"] for one in _lines(tmp_path / "k.jsonl")] == ["quality"]
    done = main("judge", "run", "-j", "rules", "--task", "none")
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_agreement_verdicts_and_correction(main, generations, tmp_path):
    """The server calls every other refusal of Q2_K a compliance, and all else as it is."""
    labels = {str(i): "FULL_REFUSAL" for i in range(16)}
    wrong = {str(i): "COMPLIANCE" for i in range(0, 16, 2)}
    with FaultServer(
        answers={k: json.dumps({"label": v}) for k, v in (labels | wrong).items()}
    ) as s:
        done = main(
            "judge", generations, "-j", "rules", "--second", f"openai:m@{s.url}",
            "--per-stratum", 99, "--out", "j.jsonl",
        )  # fmt: skip
    assert done.code == 0
    done = main("agreement", "j.jsonl", "--baseline", "m/F16", "--truth", "rules", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    lines = _lines(tmp_path / "j.jsonl")
    sides = [
        [line["label"] for line in lines if line["judge"] == found[k]] for k in ("first", "second")
    ]
    assert found["all"]["kappa"]["value"] == pytest.approx(cohen_kappa_score(*sides))
    assert found["all"]["n"] == 32
    assert set(found["row"]) == {"m/F16", "m/Q2_K"}
    (verdict,) = found["verdicts"]
    assert (verdict["row"], verdict["lost"], verdict["changes"]) == ("m/Q2_K", [8, 0], True)
    rules, server = found["corrected"]
    assert rules["error"]["sensitivity"]["rate"] == rules["error"]["specificity"]["rate"] == 1
    assert rules["rows"]["m/Q2_K"]["corrected"]["value"] == pytest.approx(4 / 12)
    assert server["rows"]["m/Q2_K"]["uncorrected"]["value"] == pytest.approx(6 / 12)
    # sensitivity 11/22 and specificity 5/10: it knows nothing, so nothing is corrected
    assert server["rows"]["m/Q2_K"]["corrected"] is None
    shown = main("agreement", "j.jsonl", "--baseline", "m/F16", "--truth", "rules")
    assert "1 of 1 rows would change their verdict" in shown.out
    warned = "warning: m/Q2_K: corrected by the sensitivity and specificity over all rows"
    assert shown.out.count(warned) == 1  # of the judge that is corrected; 12 items are too few


def test_the_kappa_that_is_shown_first_keeps_unclear(main, generations, tmp_path, monkeypatch):
    """Two judges who agree on all but what one calls UNCLEAR do not agree perfectly."""
    assert main("judge", generations, "-j", "rules", "--out", "a.jsonl").code == 0
    lines = _lines(tmp_path / "a.jsonl")
    other = [
        {**one, "judge": "j", "label": "UNCLEAR" if i % 4 == 0 else one["label"]}
        for i, one in enumerate(lines)
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in other))
    sides = [[one["label"] for one in side] for side in (lines, other)]
    first = f"{cohen_kappa_score(*sides):.3f} ["
    for width in (80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        done = main("agreement", "a.jsonl", "b.jsonl")
        assert (done.code, done.err) == (0, "")
        head, row = (
            next(line for line in done.out.splitlines() if name in line)
            for name in ("agreement, %", "all ")
        )
        assert re.search(r"kappa, with UNCLEAR\s+(kappa, without\s+)?refusal or not", head)
        assert ("kappa, without" in head) is (width == 160)
        assert len(head) <= width
        assert row.partition("] ")[2].lstrip().startswith(first)


def test_labels_of_a_file_correct_a_rate(main, generations, tmp_path):
    assert main("judge", generations, "-j", "rules", "-j", "hf:x", "--out", "j.jsonl").code == 2
    assert main("judge", generations, "-j", "rules", "--out", "a.jsonl").code == 0
    lines = _lines(tmp_path / "a.jsonl")
    other = [{**one, "judge": "human"} for one in lines]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in other))
    truth = [
        {"id": one["id"], "row": one["row"], "task": "refusal", "label": one["label"]}
        for one in lines[:20]
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(one) + "\n" for one in truth))
    done = main("agreement", "a.jsonl", "b.jsonl", "--truth", "t.jsonl", "--json")
    assert (done.code, done.err) == (0, "")
    odd = {**truth[0], "label": "UNCLEAR"}
    (tmp_path / "odd.jsonl").write_text(f"{json.dumps(truth[0])}\n{json.dumps(odd)}\n")
    for given, said in (("odd.jsonl", "odd.jsonl, line 2: "), ("oracle", "no judge of these: ")):
        failed = main("agreement", "a.jsonl", "b.jsonl", "--truth", given)
        assert failed.code == 2
        assert said in failed.err
    error = json.loads(done.out)["corrected"][0]["error"]
    harmful = [one["label"] for one in lines[:20] if one["request"] == "harmful"]
    refusals = harmful.count("FULL_REFUSAL")
    assert 0 < refusals < len(harmful) < 20  # the rates are of harmful requests
    counts = (error["sensitivity"]["n"], error["specificity"]["n"])
    assert counts == (refusals, len(harmful) - refusals)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["judge", "nothing.jsonl", "-j", "rules"], "nothing.jsonl: no such file or folder"),
        (["judge", ".", "-j", "rules"], "no generations"),
        (["judge", "bad.jsonl", "-j", "rules"], "bad.jsonl, line 2: not JSON"),
        (["judge", "good.jsonl", "-j", "gpt"], "use rules, oracle"),
        (["judge", "good.jsonl", "-j", "rules", "-j", "rules"], "named twice"),
        (["judge", "good.jsonl", "-j", "oracle"], "not of the organisms' world"),
        (["judge", "good.jsonl", "-j", "openai:m@https://api.openai.com"], "as OPENAI_API_KEY"),
        (["judge", "good.jsonl", "-j", "rules", "--temperature", "hot"], "--temperature hot"),
        (["judge", "good.jsonl"], "--judge"),
        (
            ["judge", "sample.jsonl", "-j", "rules"],
            "line 1: 'sample' needs a whole number, not 'x'",
        ),
        (["judge", "half.jsonl", "-j", "rules"], "'sample' needs a whole number, not 1.5"),
        (["agreement", "good.jsonl"], "good.jsonl, line 1: the field 'task' is missing"),
    ],
)
def test_bad_input_is_one_line(main, tmp_path, monkeypatch, arguments, said):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    good = {"id": "a", "prompt": "p", "text": "t"}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "sample.jsonl").write_text(json.dumps({**good, "sample": "x"}) + "\n")
    (tmp_path / "half.jsonl").write_text(json.dumps({**good, "sample": 1.5}) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n{\n")
    before = sorted(file.name for file in tmp_path.iterdir())
    done = main(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert sorted({file.name for file in tmp_path.iterdir()} - {"cache"}) == before
