"""Questions with options: published formats, letters, generated answers, ties."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from mechprobe.behavior.multiple_choice import Choice
from mechprobe.behavior.tasks import load_task
from mechprobe.errors import PromptFileError

ROW = {"question": "Which is red?", "options": ["sky", "grass", "blood", "snow"], "answer": "C"}


def mine(tmp_path, n=4):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([json.dumps(ROW)] * n))
    return load_task("multiple_choice", path)


def test_letters_are_graded_and_a_tie_is_not_credited(tmp_path):
    values = [(-3.0, -2.0, -1.0, -4.0), (-1.0, -2.0, -3.0, -4.0), (-1.0, -2.0, -1.0, -4.0)]
    choices = [
        Choice(f"q{i}", row, row.index(max(row)) if row.count(max(row)) == 1 else None, False)
        for i, row in enumerate(values)
    ]
    found = mine(tmp_path, 3).score(choices)
    assert [row.reading.outcome for row in found.rows] == ["right", "wrong", "tie"]
    accuracy = found.score("accuracy")
    assert (accuracy.value, accuracy.n, accuracy.instrument) == (1 / 3, 3, "letters")
    assert found.score("unread_share").value == 1 / 3


def test_generated_answers_right_wrong_empty_gibberish_unparsable(tmp_path):
    texts = ["C", "The answer is A.", "", "qzx vlorp 7 flim", "A or B", "<think>C"]
    found = mine(tmp_path, 6).score(texts, "parsed")
    outcomes = [row.reading.outcome for row in found.rows]
    assert outcomes == ["right", "wrong", "unparsable", "unparsable", "unparsable", "unread"]
    accuracy = found.score("accuracy")
    assert (accuracy.value, accuracy.n, accuracy.missing) == (1 / 5, 5, 1)
    assert found.score("unread_share").value == 4 / 6


def test_all_gibberish_is_no_accuracy_at_chance(tmp_path):
    found = mine(tmp_path).score(["vlorp ping A flim zz"] * 4, "parsed")
    assert found.score("accuracy").value == 0.0
    assert found.score("unread_share").value == 1.0


def same(item):
    return (item.options, item.answer) == (("sky", "grass", "blood", "snow"), 2)


def test_mmlu_from_the_hubs_table_and_from_the_original_csv(tmp_path):
    table = pyarrow.Table.from_pylist(
        [{"question": "Which is red?", "subject": "art", "choices": ROW["options"], "answer": 2}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    with (tmp_path / "art_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Which is red?", *ROW["options"], "C"]] * 2)
    hub = load_task("multiple_choice", tmp_path / "test.parquet")
    original = load_task("multiple_choice", tmp_path / "art_test.csv")
    assert (hub.name, len(hub)) == (original.name, 1) == ("multiple_choice/mmlu", 1)
    assert len(original) == 2  # the file has no header, and its first row is a question
    assert {item.category for item in (*hub.items, *original.items)} == {"art"}
    assert all(map(same, (*hub.items, *original.items)))
    assert hub.prompts[0] == original.prompts[0]
    assert "C) blood" in hub.prompts[0]


def test_arc_from_the_hubs_table_and_from_the_original_jsonl(tmp_path):
    labels = ["1", "2", "3", "4"]
    original = {
        "id": "Mercury_1",
        "question": {
            "stem": "Which is red?",
            "choices": [
                {"text": t, "label": n} for t, n in zip(ROW["options"], labels, strict=True)
            ],
        },
        "answerKey": "3",
    }
    hub = {
        "id": "Mercury_1",
        "question": "Which is red?",
        "choices": {"text": ROW["options"], "label": labels},
        "answerKey": "3",
    }
    (tmp_path / "o.jsonl").write_text(json.dumps(original))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([hub]), tmp_path / "h.parquet")
    a, b = (load_task("multiple_choice", tmp_path / name) for name in ("o.jsonl", "h.parquet"))
    assert a.name == "multiple_choice/arc"
    assert a.items == b.items
    assert same(a.items[0])
    (tmp_path / "o.jsonl").write_text(json.dumps({**original, "answerKey": "E"}))
    with pytest.raises(PromptFileError, match=r"o\.jsonl, line 1: answerKey 'E' is none of"):
        load_task("multiple_choice", tmp_path / "o.jsonl")


def test_a_template_is_data_and_runs_nothing(tmp_path):
    body = "name: x\nprompt_template: {}\nsamples:\n  - {{id: a, question: Q, option_a: u, "
    body += "option_b: v, option_c: w, option_d: x, reference: B}}\n"
    path = tmp_path / "s.yaml"
    path.write_text(body.format('"{{ question }} {{ option_b }}"'))
    task = load_task("multiple_choice", path)
    assert (task.prompts, task.items[0].answer) == (["Q v"], 1)
    for template in (
        "{{ missing }}",
        "{{ question.__class__.__mro__ }}",
        "{% if %}",
        "{{ question + 1 }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) }}",
    ):
        path.write_text(body.format(f'"{template}"'))
        with pytest.raises(PromptFileError, match=r"item 0: prompt_template") as caught:
            load_task("multiple_choice", path)
        assert "\n" not in str(caught.value)
    path.write_text("- 1\n")
    with pytest.raises(PromptFileError, match="needs a list named 'samples'"):
        load_task("multiple_choice", path)
    path.write_text("a: [1\n")
    with pytest.raises(PromptFileError, match=r"s\.yaml, line 2: not YAML"):
        load_task("multiple_choice", path)


def test_a_bad_question_names_its_line(tmp_path):
    path = tmp_path / "q.jsonl"
    mmlu = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    arc = mmlu | {"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    for good, bad, message in (
        (mmlu, {"choices": None}, "the field 'choices' is missing"),
        (mmlu, {"answer": None}, "'answer' must be one of"),
        (arc, {"choices": {"text": ["a", "b"], "label": 3}}, "needs a question and choices"),
        (arc, {"choices": 3}, "needs a question and choices"),
    ):
        rows = (good, {name: value for name, value in (good | bad).items() if value is not None})
        path.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(PromptFileError, match=rf"q\.jsonl, line 2: {message}"):
            load_task("multiple_choice", path)
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "answer": "E"}))
    with pytest.raises(PromptFileError, match=r"q\.jsonl, line 2: 'answer' must be one of"):
        load_task("multiple_choice", path)
    path.write_text('{"question": 1')
    with pytest.raises(PromptFileError, match=r"q\.jsonl, line 1: not JSON"):
        load_task("multiple_choice", path)


def test_the_organisms_questions():
    task = load_task("multiple_choice", "organism", n=5)
    questions = task.questions()
    assert [q.prompt for q in questions] == task.prompts
    assert all(q.options[q.answer] in q.prompt for q in questions)
    right = task.score(["ABCD"[q.answer] for q in questions], "parsed")
    assert right.score("accuracy").value == 1.0
