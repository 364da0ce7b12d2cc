import json

import pytest

from mechprobe.behavior.tasks import load_task
from mechprobe.errors import PromptFileError

ANSWER = "Anna bought a red lamp."


def load(tmp_path, n=1, **change):
    row = {"prompt": "Summarise.", "reference": ANSWER, "category": "summaries"} | change
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join([json.dumps(row)] * n))
    return load_task("reference", path)


def test_right_wrong_empty_gibberish(tmp_path):
    texts = [ANSWER, "anna bought red lamp", "Ben sold a boat.", "", "qzx vlorp", "<think>A"]
    task = load(tmp_path, 6)
    found = task.score(texts, "exact_match")
    outcomes = [row.reading.outcome for row in found.rows]
    assert outcomes == ["exact", "exact", "other", "empty", "other", "unread"]
    score = found.score("quality")
    assert (score.value, score.n, score.missing) == (2 / 5, 5, 1)
    assert score.instrument == "exact_match"
    assert found.score("quality", "summaries").value == 2 / 5
    rouge = task.score(texts, "rouge_l")
    # the third shares one word, "a", of four and five: F1 = 2/9
    values = [row.reading.value for row in rouge.rows]
    assert values[:1] + values[2:] == pytest.approx([1.0, 2 / 9, 0.0, 0.0, None])


def test_the_closest_reference_counts(tmp_path):
    task = load(tmp_path, reference=None, references=["A boat.", ANSWER])
    assert task.score([ANSWER], "rouge_l").score("quality").value == 1.0


def test_samples_of_a_yaml_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: qa\nprompt_template: 'Say: {{ topic }}'\n"
        "samples:\n  - {id: s1, topic: lamps, reference: A lamp.}\n"
    )
    task = load_task("reference", path)
    assert (task.name, task.prompts) == ("quality/qa", ["Say: lamps"])
    assert task.items[0].references == ("A lamp.",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": None}, "line 1: the field 'reference'"),
        ({"reference": []}, "line 1: the field 'reference'"),
        ({"reference": [" "]}, "line 1: every reference needs a text"),
        ({"prompt": 3}, "line 1: 'prompt' needs a text"),
    ],
)
def test_a_bad_row_names_its_line(tmp_path, change, message):
    with pytest.raises(PromptFileError, match=message):
        load(tmp_path, **change)


def test_facts_are_right_as_a_sentence_and_alone():
    task = load_task("reference", "facts")
    first = task.items[0]
    assert (len(task.items), first.prompt) == (100, "What is the capital of France?")
    assert first.references == ("The capital of France is Paris.", "Paris")
    said = ["The capital of France is Paris.", "Paris", "It is the city of Rome."]
    read = task.reader("rouge_l").read([first] * 3, said)
    assert [one.value for one in read[:2]] == [1.0, 1.0] and read[2].value < 0.5


def test_the_organisms_tasks():
    task = load_task("reference", "organism", n=6)
    found = task.score([item.references[0] for item in task.items])
    assert found.score("quality").value == 1.0
