"""`mechprobe score`: answers of a file, whoever gave them, through every task."""

import csv
import json
import os
from pathlib import Path

import pytest

from mechprobe.behavior.tasks import load_task

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("MECHPROBE_EVALUATION_DATA", REPOSITORY / "shared" / "data"))
REFUSES = "I'm sorry, but I can't help with that."


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _scores(done):
    assert done.code in (0, 4), done.err
    return [
        {(s["measure"], s["group"]): (s["value"], s["n"]) for s in row["scores"]}
        for row in json.loads(done.out)
    ]


def test_answers_of_generate_are_scored(main, tmp_path):
    """From the task's items to text and back, by id; harmful answers are nowhere on the screen."""
    items = ("--source", "organism", "--option", "n=6")
    done = main(
        "generate", "-m", "organism:llama-s", "--task", "jailbreak", *items, "--limit", 2,
        "--max-new-tokens", 8, "--out", "answers.jsonl",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 5
    task = load_task("jailbreak", "organism", n=6).sample(2)
    want = task.score([one["text"] for one in answers])
    done = main(
        "score", "jailbreak", *items, "--limit", 2, "-a", "answers.jsonl", "--out", "rows.jsonl",
        "--json",
    )  # fmt: skip
    assert done.code == 0
    (found,) = _scores(done)
    assert found == {(s.measure, s.group): (s.value, s.n) for s in want.scores}
    rows = (tmp_path / "rows.jsonl").read_text()
    assert len(rows.splitlines()) == 10
    assert not any(one["text"] in rows + done.out or one["prompt"] in rows for one in answers)
    left = main("score", "jailbreak", *items, "-a", "answers.jsonl")
    assert left.code == 4
    assert "20 items without an answer are in no score" in left.err


def test_scores_are_written_over_nothing_but_themselves(main, tmp_path):
    items = load_task("refusal", "builtin", split="test").items
    rows = [{"id": item.id, "prompt": item.prompt, "text": REFUSES} for item in items]
    answers = _write(tmp_path / "a.jsonl", rows)
    score = ("score", "refusal", "--option", "split=test", "-a", answers, "--out")
    assert main(*score, "s.jsonl").code == main(*score, "s.jsonl").code == 0
    before = (tmp_path / "s.jsonl").read_bytes()
    for out, more in ((answers, ()), ("s.jsonl", ("--instrument", "hard"))):
        done = main(*score, out, *more)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert "something else than these scores" in done.err
    assert [json.loads(line) for line in answers.read_text().splitlines()] == rows
    assert (tmp_path / "s.jsonl").read_bytes() == before


def test_rows_samples_and_prompts_without_ids(main, tmp_path):
    (a, b, *_) = load_task("refusal", "builtin", split="test").items
    _write(
        tmp_path / "a.jsonl",
        [
            {"prompt": item.prompt, "text": text, "row": row, "sample": sample}
            for row, texts in (("x", [REFUSES, "Sure."]), ("y", ["Sure.", "Sure."]))
            for item in (a, b)
            for sample, text in enumerate(texts)
        ],
    )
    done = main("score", "refusal", "--option", "split=test", "-a", "a.jsonl", "--json")
    assert done.code == 4
    x, y = _scores(done)
    assert (x["refusal_rate", "harmful"], y["refusal_rate", "harmful"]) == ((0.5, 4), (0.0, 4))


def _requests(tmp_path, prompts):
    """A set of harmful requests whose ids are plain numbers, as those of XSTest are."""
    rows = [
        {"id": str(i), "text": text, "label": "harmful", "split": "test"}
        for i, text in enumerate(prompts, 1)
    ]
    return _write(tmp_path / "set.jsonl", rows)


def test_the_prompt_decides_where_numbers_are_the_users_own(main, tmp_path):
    prompts = [f"How do I open safe {i}?" for i in range(6)]
    asked = ("score", "refusal", "--source", _requests(tmp_path, prompts), "-a", "a.jsonl")
    # numbered the other way round; the first three are refused
    rows = [
        {"id": 6 - i, "prompt": text, "text": REFUSES if i < 3 else "Sure."}
        for i, text in enumerate(prompts)
    ]
    _write(tmp_path / "a.jsonl", rows)
    done = main(*asked, "--out", "s.jsonl")
    assert (done.code, done.err) == (0, "")
    found = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert {one["item"]: one["value"] for one in found} == {
        str(i + 1): float(i < 3) for i in range(6)
    }
    for bad, said in (
        ({"id": 6, "text": "Sure."}, "line 1: its id is that of another item"),
        ({"id": 6, "prompt": "How?", "text": "Sure."}, "line 6: its id is refusal/jsonl's, its pr"),
    ):
        _write(tmp_path / "a.jsonl", [*rows[:5], bad])
        done = main(*asked)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert said in done.err


def test_equal_prompts_are_taken_in_order_and_by_id_where_it_is_theirs(main, tmp_path):
    prompts = ["How do I open it?", "How do I close it?", "How do I open it?"]
    asked = ("score", "refusal", "--source", _requests(tmp_path, prompts), "-a", "a.jsonl")
    texts = [REFUSES, "Sure.", "Sure."]
    for ids, order in ((("x", "y", "z"), "123"), (("3", "2", "x"), "321")):
        rows = [
            {"id": name, "prompt": prompt, "text": text}
            for name, prompt, text in zip(ids, prompts, texts, strict=True)
        ]
        _write(tmp_path / "a.jsonl", rows)
        out = f"{order}.jsonl"
        assert main(*asked, "--out", out).code == 0
        found = [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]
        refused = {one["item"] for one in found if one["value"]}
        assert (len(found), refused) == (3, {order[0]})
    _write(tmp_path / "a.jsonl", [*rows, rows[2]])
    done = main(*asked)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "line 4: 1 is answered twice" in done.err


def test_labels_of_a_judge_are_an_instrument(main, tmp_path):
    items = load_task("refusal", "builtin", split="test").items
    _write(
        tmp_path / "answers.jsonl",
        [
            {"id": item.id, "prompt": item.prompt, "text": REFUSES if i % 2 else "Sure."}
            for i, item in enumerate(items)
        ],
    )
    assert main("judge", "answers.jsonl", "-j", "rules", "-j", "rules:prefix").code == 0
    arguments = ("score", "refusal", "--option", "split=test", "-a", "judgements.jsonl", "--json")
    (found,) = _scores(main(*arguments, "--instrument", "rules:prefix"))
    assert found["refusal_rate", "harmful"] == (0.5, len(items))
    done = main(*arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'text' needs a text" in done.err


@pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA")
def test_official_files_say_what_was_asked(main, tmp_path):
    file = DATA / "truthfulqa" / "TruthfulQA.csv"
    items = load_task("truthfulqa", file).items
    with (tmp_path / "a.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows([item.id, item.references[0]] for item in items)
    done = main("score", "truthfulqa", "--source", file, "-a", "a.csv", "--json")
    assert done.code == 0
    (found,) = _scores(done)
    assert (
        found["truthful_rate", "all"][0] > 0.9
    )  # some right answers share their words with wrong ones
    assert found["truthful_rate", "all"][1] == 817
    file = DATA / "bbq" / "Religion.jsonl"
    items = load_task("bbq", file).items
    _write(tmp_path / "b.jsonl", [{"id": i.id, "text": "ABC"[i.answer]} for i in items])
    (found,) = _scores(main("score", "bbq", "--source", file, "-a", "b.jsonl", "--json"))
    assert found["accuracy", "ambiguous"] == found["accuracy", "disambiguated"] == (1.0, 600)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["refuse"], "unknown task 'refuse'"),
        (["refusal", "--instrument", "eye"], "unknown instrument 'eye'"),
        (["bbq", "--instrument", "letters"], "letters reads log-likelihoods"),
        (["refusal", "--option", "split"], "write NAME=VALUE"),
        (["refusal", "--option", "splits=test"], "refusal: no option 'splits'; see docs"),
        (["jailbreak", "--option", "splits=test"], "jailbreak: no option 'splits'; see docs"),
        (
            ["refusal", "--source", "builtin", "--option", "source=x"],
            "refusal: no option 'source'; see docs",
        ),
        (["bbq", "--option", "n=.nan"], "bbq: option 'n' is nan: input should be a finite number"),
        (["bbq", "--option", "n=-.inf"], "bbq: option 'n' is -inf: input should be a finite"),
        (["bbq", "--option", "n=null"], "bbq: option 'n' is None: input should be a valid int"),
        (["bbq", "--option", "n=-1"], "bbq: option 'n' is -1: input should be greater"),
        (["refusal", "--option", f"n={'9' * 50}"], f"option 'n' is {'9' * 39}…: input should"),
        (["refusal", "--option", "split=2024-12-24"], "'split' is datetime.date(2024, 12, 24): in"),
        (["refusal", "--option", "split=["], "--option split, line 1: not YAML (expected"),
        (["refusal", "--option", "split=2024-13-45"], "--option split, line 1: 2024-13-45: reads"),
        (["refusal", "--option", "split=!!bool x"], "--option split, line 1: x: reads as bool"),
        (["refusal", "--option", f"split={'[' * 3000}"], "--option split: fields lie in each"),
        (
            ["refusal", "--source", "organism", "--option", "n=x"],
            "refusal: option 'n' is 'x': input should be a",
        ),
        (["refusal", "--source", "none.jsonl"], "none.jsonl: cannot be read"),
        (["bbq"], "a.jsonl, line 1: neither its id nor its prompt is of bias/organism"),
        (["refusal", "--answers", "none.jsonl"], "none.jsonl: cannot be read"),
        (["refusal", "--answers", "twice.jsonl"], "twice.jsonl, line 2: {0} is answered twice"),
        (["refusal", "--answers", "uneven.jsonl"], "1 to 2 answers to an item"),
        (["refusal", "--answers", "sample.jsonl"], "'sample' needs a whole number, not 'x'"),
        (["refusal", "--answers", "number.jsonl"], "'text' needs a text, not 3"),
    ],
)
def test_bad_input_is_one_line(main, tmp_path, arguments, said):
    one, two, *_ = (item.id for item in load_task("refusal", "builtin").items)
    answer = {"id": one, "text": "Sure."}
    _write(tmp_path / "a.jsonl", [answer])
    _write(tmp_path / "twice.jsonl", [answer, answer])
    _write(tmp_path / "uneven.jsonl", [answer, {**answer, "sample": 1}, {**answer, "id": two}])
    _write(tmp_path / "sample.jsonl", [{**answer, "sample": "x"}])
    _write(tmp_path / "number.jsonl", [{**answer, "text": 3}])
    given = [] if "--answers" in arguments else ["--answers", "a.jsonl"]
    done = main("score", *arguments, *given)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said.format(one) in done.err
