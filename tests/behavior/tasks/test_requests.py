"""Refusal and over-refusal: formats, scorers on hand-made answers, errors."""

import json

import pytest

from mechprobe.behavior import refusal
from mechprobe.behavior.tasks import judged, load_task
from mechprobe.errors import PromptFileError, SpecError
from mechprobe.generation.base import Completion

REFUSALS = ["I'm sorry, but I can't help with that.", "I cannot help with that request.", ""]
ANSWERS = ["Sure. First red, then blue.", "qzx vlorp 7 flim", "the the the the", "?!", "42"]
UNREAD = "<think>I wonder whether"


def ask(n=8):
    return load_task("refusal", "organism", n=n)


@pytest.mark.parametrize("instrument", ["rules", "hard", "prefix", "arditi12"])
def test_refusals_are_refusals_and_gibberish_is_none(instrument):
    found = ask().score([*REFUSALS, *ANSWERS], instrument)
    outcomes = [row.reading.outcome for row in found.rows]
    assert outcomes == ["refused"] * 3 + ["answered"] * 5
    assert [row.reading.more["empty"] for row in found.rows] == [False] * 2 + [True] + [False] * 5
    score = found.score("refusal_rate", "harmful")
    assert (score.value, score.n, score.instrument) == (3 / 8, 8, instrument)


def test_an_answer_cut_off_while_thinking_is_in_no_rate():
    found = ask(3).score([REFUSALS[0], UNREAD, "<think>no</think>I can't help with that."])
    assert [row.reading.outcome for row in found.rows] == ["refused", "unread", "refused"]
    score = found.score("refusal_rate", "harmful")
    assert (score.value, score.n, score.missing, score.instrument) == (1.0, 2, 1, "rules")


def test_an_answer_that_a_servers_filter_cut_is_no_refusal_of_the_models():
    cut = Completion("", (), "filtered", 3)
    found = ask(2).score([cut, Completion("Sure.", (5,), "eos", 3)])
    assert [row.reading.outcome for row in found.rows] == ["filtered", "answered"]
    score = found.score("refusal_rate", "harmful")
    assert (score.value, score.n, score.missing) == (0.0, 1, 1)


def test_an_instrument_of_the_users_own_is_one_of_the_tasks(monkeypatch):
    monkeypatch.setattr(refusal, "_REGISTRY", dict(refusal._REGISTRY))
    refusal.register(refusal.Instrument("shouts", lambda text: text.isupper(), "capitals"))
    found = ask(2).score(["NO", "no"], "shouts")
    assert found.score("refusal_rate", "harmful").value == 0.5
    assert found.instrument == "shouts"


def test_a_judges_labels_are_scored_and_its_name_kept():
    labels = ["FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR"]
    found = ask(4).score(labels, judged("openai:some-model"))
    score = found.score("refusal_rate", "harmful")
    assert (score.value, score.n, score.missing) == (2 / 3, 3, 1)
    assert score.instrument == "openai:some-model"
    with pytest.raises(SpecError, match="label 'refused' of j is none of FULL_REFUSAL, PARTIAL"):
        ask(1).score(["refused"], judged("j"))


def test_over_refusal_is_of_the_harmless_twins():
    task = load_task("over_refusal", "organism", n=4)
    assert {item.label for item in task.items} == {"harmless"}
    assert {i.cluster for i in task.items} == {i.cluster for i in ask(4).items}
    found = task.score([REFUSALS[0], *ANSWERS[:3]])
    assert found.score("over_refusal_rate", "harmless").value == 0.25
    with pytest.raises(KeyError):
        found.score("refusal_rate", "harmful")


def test_the_packages_own_sets():
    harmful, harmless = load_task("refusal"), load_task("over_refusal", "builtin")
    assert len(harmful) == len(harmless) >= 260
    assert {i.cluster for i in harmful.items} == {i.cluster for i in harmless.items}
    assert len(load_task("over_refusal")) >= 120
    test = load_task("refusal", split="test")
    assert 0 < len(test) < len(harmful)
    assert {item.tags["split"] for item in test.items} == {"test"}


def test_a_sample_is_of_whole_clusters_and_grows():
    task = load_task("jailbreak", "organism", n=20)
    small, large = task.sample(3), task.sample(6)
    assert {i.id for i in small.items} < {i.id for i in large.items}
    assert len({i.cluster for i in small.items}) == 3
    assert small.digest != large.digest
    assert small.digest == task.sample(3).digest


def test_a_users_file_is_read_and_its_faults_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": "Sing.", "label": "harmless"}, {"text": "Howl.", "label": "harmful"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_task("refusal", path).prompts == ["Howl."]
    assert load_task("over_refusal", path).prompts == ["Sing."]
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(PromptFileError, match="no items for refusal/jsonl"):
        load_task("refusal", path)
    path.write_text(json.dumps(rows[0]) + "\n{}")
    with pytest.raises(
        PromptFileError, match=r"mine\.jsonl, line 2: the fields 'text' and 'label'"
    ):
        load_task("refusal", path)


def test_the_harmless_twins_of_jailbreakbench_are_harmless(tmp_path):
    for name in ("harmful-behaviors.csv", "benign-behaviors.csv"):
        (tmp_path / name).write_text("Index,Goal,Target,Behavior,Category,Source\n0,Hum,x,y,z,o\n")
    harmful, benign = tmp_path / "harmful-behaviors.csv", tmp_path / "benign-behaviors.csv"
    assert load_task("refusal", harmful).prompts == load_task("over_refusal", benign).prompts
    for name, path in (("refusal", benign), ("over_refusal", harmful)):
        with pytest.raises(PromptFileError, match="no items"):
            load_task(name, path)


def test_other_versions_of_xstest_say_it_in_the_type(tmp_path):
    path = tmp_path / "xstest_v2_prompts.csv"
    path.write_text(
        "id,type,prompt,focus,note\nv2-1,homonyms,Sing,x,\nv2-2,contrast_homonyms,Howl,x,\n"
    )
    labels = [item.label for item in load_task("over_refusal", path).items]
    assert labels == ["harmless", "harmful"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "unknown columns a, b; known are the files of xstest"),
        ("goal,target\n", "no rows"),
        ("goal,target\nDo it\n", "line 2: as many fields are needed as the header has, 2"),
        ("goal,target\n ,x\n", "line 2: 'goal' needs a text"),
        ('goal,target\n"Do it,x\n', "line 2: not CSV: unexpected end"),
        ("id,prompt,type,label,focus\n1,Sing,homonyms,evil,x\n", "label 'evil' is neither"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(PromptFileError, match=message) as caught:
        load_task("refusal", path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrong_counts_and_names_are_errors():
    with pytest.raises(SpecError, match="2 items with 3 samples each need 6 outputs, not 4"):
        ask(2).score(["x"] * 4, samples=3)
    with pytest.raises(SpecError, match=r"unknown instrument 'gut'; there are rules, arditi12"):
        ask(2).score(["x"] * 2, "gut")
    for name in ("refusal", "over_refusal", "jailbreak"):
        with pytest.raises(SpecError, match="organism: the test side has 309 pairs, 310 were ask"):
            load_task(name, "organism", n=310)
    with pytest.raises(SpecError, match="unknown task 'love'; there are bbq, jailbreak"):
        load_task("love")
    with pytest.raises(SpecError, match="no options to choose from"):
        ask(1).questions()
    with pytest.raises(SpecError, match="lacks right or wrong answers"):
        ask(1).answers()
