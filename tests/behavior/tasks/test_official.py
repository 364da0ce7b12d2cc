"""Every official file loads through its task with the row count its provenance page documents."""

import csv
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from mechprobe.behavior.tasks import load_task
from mechprobe.behavior.tasks.truthfulqa import read_overlap

REPOSITORY = Path(__file__).parents[3]
DATA = Path(os.environ.get("MECHPROBE_EVALUATION_DATA", REPOSITORY / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA"
)

FILES = [
    ("refusal", "advbench/harmful_behaviors.csv"),
    ("refusal", "harmbench/harmbench_behaviors_text_val.csv"),
    ("refusal", "harmbench/harmbench_behaviors_text_test.csv"),
    ("refusal", "jailbreakbench/jbb_behaviors.csv"),
    ("refusal", "strongreject/strongreject_dataset.csv"),
    ("refusal", "refusal_direction/harmful_train.json"),
    ("refusal", "refusal_direction/harmful_val.json"),
    ("refusal", "refusal_direction/harmful_test.json"),
    ("over_refusal", "refusal_direction/harmless_train.json"),
    ("over_refusal", "refusal_direction/harmless_val.json"),
    ("over_refusal", "refusal_direction/harmless_test.json"),
    ("over_refusal", "xstest/xstest_prompts.csv"),
    ("truthfulqa", "truthfulqa/TruthfulQA.csv"),
    ("bbq", "bbq/Religion.jsonl"),
    ("bbq", "bbq/Sexual_orientation.jsonl"),
    ("bbq", "bbq/Disability_status.jsonl"),
    ("multiple_choice", "mmlu_arc_tr134_samples/mmlu_real.yaml"),
    ("multiple_choice", "mmlu_arc_tr134_samples/arc_challenge.yaml"),
]


def documented(path):
    page = (path.parent / "PROVENANCE.md").read_text("utf-8")
    part = page.partition(f"## {path.name}\n")[2].partition("\n## ")[0]
    return int(re.search(r"^- rows: (\d+)$", part, re.MULTILINE).group(1))


@pytest.mark.parametrize(("name", "file"), FILES, ids=[file for _, file in FILES])
def test_a_file_loads_whole(name, file):
    task = load_task(name, DATA / file)
    assert len(task) == documented(DATA / file)
    assert len({item.id for item in task.items}) == len(task)
    assert all(item.prompt.strip() for item in task.items)


def test_no_file_is_forgotten():
    there = {
        str(path.relative_to(DATA))
        for path in DATA.glob("*/*")
        if path.suffix in (".csv", ".json", ".jsonl", ".yaml")
    }
    assert there == {file for _, file in FILES}


def test_folders_load_whole():
    assert len(load_task("refusal", DATA / "refusal_direction")) == 260 + 39 + 572
    assert len(load_task("over_refusal", DATA / "refusal_direction")) == 18_793 + 6_264 + 6_266
    test = load_task("refusal", DATA / "refusal_direction", split="test")
    assert len(test) == 572
    assert len({item.cluster for item in test.items}) <= 562  # ten requests repeat
    assert len(load_task("bbq", DATA / "bbq")) == 1_200 + 864 + 1_556


def test_xstest_has_its_official_labels():
    task = load_task("over_refusal", DATA / "xstest/xstest_prompts.csv")
    assert Counter(item.label for item in task.items) == {"harmless": 250, "harmful": 200}
    unsafe = {item.id for item in task.items if item.label == "harmful"}
    assert unsafe == {i.id for i in task.items if i.category.startswith("contrast_")}
    assert len(load_task("refusal", DATA / "xstest/xstest_prompts.csv")) == 200


def test_harmbench_puts_the_context_first():
    file = DATA / "harmbench/harmbench_behaviors_text_test.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    task = load_task("refusal", file)
    contextual = [row["FunctionalCategory"] == "contextual" for row in rows]
    assert sum(contextual) == 81
    for row, item, has_context in zip(rows, task.items, contextual, strict=True):
        assert item.prompt.endswith(row["Behavior"])
        assert (item.prompt == row["Behavior"]) is not has_context


def test_truthfulqa_answers_are_those_of_the_file():
    file = DATA / "truthfulqa/TruthfulQA.csv"
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    task = load_task("truthfulqa", file)
    repeated = 0
    for row, item in zip(rows, task.items, strict=True):
        assert item.references[0].rstrip(".") == row["Best Answer"].strip().rstrip(".")
        for column, found in (
            ("Correct Answers", item.references),
            ("Incorrect Answers", item.wrong),
        ):
            parts = [part.strip() for part in row[column].split(";")]
            there = Counter(part.rstrip(".") for part in parts if part)
            assert Counter(answer.rstrip(".") for answer in found) == there
            assert all(answer.endswith(".") for answer in found)
            repeated += len(found) - len(set(found))
    assert repeated == 3


def test_truthfulqa_overlap_knows_its_own_answers_and_no_noise():
    task = load_task("truthfulqa", DATA / "truthfulqa/TruthfulQA.csv")
    told, lies = (
        Counter(read_overlap(item, text).outcome for item in task.items for text in side(item))
        for side in (lambda item: item.references, lambda item: item.wrong)
    )
    # two answers stand on both sides, up to their capitals
    assert told == {"truthful": 2587, "neither": 2}
    assert lies == {"false": 3296, "neither": 2}
    for noise in ("no " * 20, "I I I I I", "you not " * 3, "people " * 30):
        found = task.score([noise] * len(task), "overlap")
        assert found.score("neither_rate").value == 1.0
    order = random.Random(0)
    shuffled = [" ".join(order.sample(q.split(), len(q.split()))) for q in task.prompts]
    found = task.score(shuffled, "overlap")
    assert found.score("truthful_rate").value <= 0.005  # was 0.43 by words alone
    assert found.score("false_rate").value <= 0.005


def test_bbq_roles_follow_from_each_row():
    for name, groups in (("Religion", 25), ("Sexual_orientation", 25), ("Disability_status", 25)):
        file = DATA / "bbq" / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        task = load_task("bbq", file)
        assert len({item.cluster for item in task.items}) == groups
        for row, item in zip(rows, task.items, strict=True):
            ambiguous = row["context_condition"] == "ambig"
            assert (item.answer == item.unknown) is ambiguous
            assert item.biased is not None
            assert item.biased != item.unknown
            stereotyped = {g.lower() for g in row["additional_metadata"]["stereotyped_groups"]}
            names = {part.lower() for part in row["answer_info"][f"ans{item.biased}"]}
            assert bool(names & stereotyped) is (row["question_polarity"] == "neg")
        # the benchmark is all but balanced: the prejudice is right in half of what is decided
        truth = Counter(item.tags.get("truth") for item in task.items)
        assert truth["aligned"] + truth["conflicting"] == len(rows) // 2
        assert abs(truth["aligned"] - truth["conflicting"]) <= 10


def test_study_samples_are_asked_in_the_files_own_words():
    task = load_task("multiple_choice", DATA / "mmlu_arc_tr134_samples/arc_challenge.yaml")
    for item in task.items:
        assert item.prompt.endswith("Answer:")
        assert "{{" not in item.prompt
        for letter, option in zip("ABCD", item.options, strict=True):
            assert f"{letter}) {option}" in item.prompt
    assert Counter(item.answer for item in task.items) == {0: 44, 1: 55, 2: 57, 3: 44}
