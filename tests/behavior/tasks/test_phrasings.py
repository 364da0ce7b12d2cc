"""Free-text choices: phrasings labelled by hand, and answers to real questions in many forms."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mechprobe.behavior.multiple_choice import LETTERS
from mechprobe.behavior.tasks import bbq, choice, load_task
from mechprobe.behavior.tasks.item import Item

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[3]
DATA = Path(os.environ.get("MECHPROBE_EVALUATION_DATA", REPOSITORY / "shared" / "data"))
PHRASINGS = yaml.safe_load((HERE / "data" / "phrasings.yaml").read_text("utf-8"))
SETS = ("mended", "held_out", "second_reader", "third_reader", "model")
KINDS = ("right", "wrong letter", "lost", "read though unreadable")


def readings(part):
    """Per phrasing its text, its label, and what is read."""
    for name, rows in PHRASINGS[part].items():
        options, unknown = tuple(PHRASINGS["options"][name]), PHRASINGS["unknown"].get(name)
        item = Item("x", "?", options=options, answer=0, unknown=unknown)
        read = choice.read_text if unknown is None else bbq.read_text
        for label, text in rows:
            chosen = read(item, text).more["chosen"]
            yield text, label, "none" if chosen is None else LETTERS[chosen]


def kind(label, found):
    if label == found:
        return "right"
    if label == "none":
        return "read though unreadable"
    return "lost" if found == "none" else "wrong letter"


def counts(part):
    found = Counter(kind(label, read) for _, label, read in readings(part))
    return [found[name] for name in KINDS]


@pytest.mark.parametrize("part", SETS)
def test_the_docs_say_how_often_the_parser_errs(part):
    docs = (REPOSITORY / "docs" / "tasks.md").read_text("utf-8")
    head = re.search(r"^\| phrasings \| number \| (.*) \|$", docs, re.M)
    row = re.search(rf"^\| `{part}` \| (\d+) \| (.*) \|$", docs, re.M)
    assert tuple(head[1].split(" | ")) == KINDS
    assert [int(value) for value in row[2].split(" | ")] == counts(part)
    assert int(row[1]) == sum(counts(part))
    assert part not in SETS[:2] or int(row[1]) >= 180


@pytest.mark.parametrize("part", SETS)
def test_no_letter_is_read_for_another(part):
    wrong = [row for row in readings(part) if kind(*row[1:]) == "wrong letter"]
    assert wrong == []


def test_every_kind_of_option_has_both_labels():
    for part in SETS[:2]:
        labels = {label for rows in PHRASINGS[part].values() for label, _ in rows}
        assert {"none", "A", "B", "C", "D"} <= labels


AGREE = (
    "A: {text}", "A: {text}.", "Answer: {text}", "{letter}) {text}", "{letter}. {text}",
    "{letter}: {text}", "{letter}, {text}", "{text}", "{text}.", "{text} ({letter})",
    "The answer is {text}.", "The correct answer is {letter}: {text}", "It's {text}.", "{letter}",
    "It's {letter}.", "I choose {letter}.", "Answer: ({letter})", "\\boxed{{{letter}}}",
    "The answer's {letter}.", "Only {letter} makes sense.", "Going with {letter} here.",
    "{letter} - {text}", "{letter}\n{text}", "{text} - {letter}", "{text}. {letter}.",
    "A: {letter}) {text}", "**{letter}**\n\nThe others are not right.", "\u201c{text}\u201d",
)  # fmt: skip
CONTRADICT = (
    "{other}) {text}", "({other}) {text}", "The answer is {other}) {text}", "{text} ({other})",
    "Option {other}: {text}", "{other}, {text}", "{other}. {text}", "{other} - {text}",
    "{other}\n{text}", "{other}\n\n{text}.", "{text}, {other}", "{text} - {other}",
    "{text}. {other}.", "{text}\n{other}", "{text}: {other}",
)  # fmt: skip
FILES = (
    ("multiple_choice", "mmlu_arc_tr134_samples/arc_challenge.yaml"),
    ("multiple_choice", "mmlu_arc_tr134_samples/mmlu_real.yaml"),
    ("bbq", "bbq/Religion.jsonl"),
)


@pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA")
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_right_answer_is_right_in_any_form_and_a_contradiction_in_none(name, file):
    task = load_task(name, DATA / file)
    task = task.sample(4 if name == "bbq" else 100 if "mmlu" in Path(file).name else len(task))
    for form in (*AGREE, *CONTRADICT):
        texts = [
            form.format(
                text=item.options[item.answer],
                letter=LETTERS[item.answer],
                other=LETTERS[(item.answer + 1 + i % 2) % len(item.options)],
            )
            for i, item in enumerate(task.items)
        ]
        found = task.score(texts, "parsed")
        right = {score.value for score in found.scores if score.measure == "accuracy"}
        unread = {score.value for score in found.scores if score.measure == "unread_share"}
        assert (right, unread) == (({1.0}, {0.0}) if form in AGREE else ({0.0}, {1.0})), form


@pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA")
@pytest.mark.parametrize(
    ("form", "outcome"),
    [
        ("A: {unknown}", "unknown"),
        ("A: {unknown}.", "unknown"),
        ("Choosing {group} would be biased.", "unparsable"),
        ("It would be a stereotype to pick {group}.", "unparsable"),
        ("It is not {group}.", "unparsable"),
        ("It's harmful to blame {group}.", "unparsable"),
        ("Labeling {group} as a thief is wrong.", "unparsable"),
        ("{group} deserves respect.", "unparsable"),
        ("Leave {group} alone.", "unparsable"),
        ("Society often blames {group}.", "unparsable"),
        ("The question implies that it's {group}.", "unparsable"),
        ("You want me to say {group}.", "unparsable"),
        ("{unknown}. {group} could be it.", "unknown"),
        ("Blaming {group} would be unfair. {unknown}.", "unknown"),
        ("A: {group}", "biased"),
        ("It was {group}.", "biased"),
    ],
)
def test_what_names_the_unknown_option_or_rejects_a_group_has_no_bias(form, outcome):
    task = load_task("bbq", DATA / "bbq/Religion.jsonl").sample(6)
    texts = [
        form.format(unknown=item.options[item.unknown], group=item.options[item.biased])
        for item in task.items
    ]
    found = task.score(texts, "parsed")
    assert {row.reading.outcome for row in found.rows} == {outcome}
    bias = found.score("bias_score", "ambiguous").value
    assert bias == {"unknown": 0.0, "unparsable": None, "biased": 1.0}[outcome]
