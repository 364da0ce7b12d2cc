"""Frames of a run directory, from files as the steps write them."""

import csv
import json
from dataclasses import asdict

import pytest

from mechprobe.analysis.templates import template_features
from mechprobe.behavior.judges import Judgement
from mechprobe.errors import RunDirectoryError, TableError
from mechprobe.experiments.analysing import analyse_run
from mechprobe.experiments.frames import read_frames
from mechprobe.experiments.plan_judges import judged_file

CELLS = ("F16@llama.cpp", "Q4_K_M@llama.cpp")
REFUSED = "I'm sorry, I cannot help with that."


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cell(run, key, *, refuses, unread=(), tasks=None):
    """A cell that refuses some of ten harmful prompts, and no harmless one."""
    folder = run / "cells" / "m" / key
    harmful = [f"h{i}" for i in range(10)]
    texts = {i: REFUSED if i in refuses else "Sure, first blue." for i in harmful}
    answers = [
        {"id": i, "label": "harmful", "text": texts[i], "ids": list(range(len(texts[i])))}
        for i in harmful
    ] + [{"id": "s0", "label": "harmless", "text": "Sure.", "ids": [1]}]
    write(folder / "generations" / "refusal.jsonl", answers)
    write(
        folder / "scores" / "refusal.jsonl",
        [
            {
                "id": row["id"],
                "label": row["label"],
                "prompts": "d",
                "unread": row["id"] in unread,
                "hard": row["text"] == REFUSED,
                "soft": False,
                "oracle": "refused" if row["text"] == REFUSED else "complied",
            }
            for row in answers
        ],
    )
    write(
        folder / "scores" / "multiple_choice.jsonl",
        [{"id": f"q{i}", "correct": i != 1} for i in range(4)],
    )
    for label, (_, _, rows) in (tasks or {}).items():
        write(folder / "scores" / f"{label}.jsonl", rows)
    (folder / "cell.json").write_text(
        json.dumps(
            {
                "refusal": {"instrument": "hard"},
                "multiple_choice": {"n": 4},
                "tasks": {
                    label: {"task": f"{kind}/x", "instrument": instrument}
                    for label, (kind, instrument, _) in (tasks or {}).items()
                },
            }
        )
    )


def task_row(item, value, **more):
    return {"item": item, "sample": 0, "cluster": f"c{item}", "value": value, **more}


def jailbreak(value):
    rows = [
        task_row("a/direct", value, instrument="hard", wrapper="direct"),
        task_row("a/role play", None, instrument="hard", wrapper="role play"),
    ]
    return {"jail": ("jailbreak", "hard", rows)}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "spec.yaml").write_text(
        "name: x\ntasks: {refusal: {instrument: hard}}\n"
        "analysis: {preset: demo, quality: accuracy, second_instrument: oracle, resamples: 100}\n"
    )
    write(
        tmp_path / "prompts" / "m.jsonl",
        [{"set": "refusal", "id": f"h{i}", "cluster": f"k{i // 2}"} for i in range(10)]
        + [{"set": "refusal", "id": "s0", "cluster": "k0"}],
    )
    cell(tmp_path, CELLS[0], refuses={f"h{i}" for i in range(10)}, tasks=jailbreak(1.0))
    cell(tmp_path, CELLS[1], refuses={"h0", "h1", "h2"}, unread={"h9"}, tasks=jailbreak(0.0))
    head = [
        "model",
        "family",
        "precision",
        "engine",
        "baseline",
        "status",
        "error",
        "ece",
    ]
    tables = {
        "matrix.csv": [["m", "", "Q4_K_M", "llama.cpp", CELLS[0], "ok", "", "0.5"]],
        "references.csv": [["m", "", "F16", "llama.cpp", "", "ok", "", ""]],
        "gaps.csv": [],
    }
    for name, rows in tables.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    return tmp_path


def test_outcomes_are_one_line_per_cell_measure_instrument_and_prompt(run):
    frame = read_frames(run).outcomes
    harmful = frame[(frame.measure == "refusal") & (frame.instrument == "hard")]
    assert harmful.groupby("cell")["value"].sum().to_dict() == {CELLS[0]: 10, CELLS[1]: 3}
    assert harmful["value"].isna().sum() == 1
    assert harmful.set_index("prompt").loc["h3", "cluster"].tolist() == ["k1", "k1"]
    assert set(frame[frame.measure == "refusal"].instrument) == {"hard", "soft", "oracle"}
    assert set(frame.measure) == {
        "refusal",
        "harmless_refusal",
        "accuracy",
        "jail_refusal_rate_direct",
        "jail_refusal_rate_role_play",
    }
    assert frame[frame.measure == "accuracy"].value.mean() == 0.75
    assert frame[frame.measure == "jail_refusal_rate_role_play"].value.isna().all()


def test_what_a_judge_calls_unclear_could_not_be_read(run):
    path = run / "cells" / "m" / CELLS[1] / "scores" / "refusal.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    said = {"h0": "unclear", "h1": "refused", "h2": "partly", "h3": "complied"}
    write(path, [{**row, "oracle": said.get(row["id"], row["oracle"])} for row in rows])
    labels = ["UNCLEAR", "FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", None]
    write(
        path.parents[1] / judged_file("j", "refusal"),
        [
            asdict(
                Judgement(
                    f"h{i}", "refusal", "m", 0, "harmful", "", "j", "", "d", label, "labelled"
                )
            )
            for i, label in enumerate(labels)
        ],
    )
    known = json.loads((path.parents[1] / "cell.json").read_text())
    (path.parents[1] / "cell.json").write_text(json.dumps({**known, "judges": {"j": ["refusal"]}}))
    frame = read_frames(run).outcomes
    mine = frame[(frame.cell == CELLS[1]) & (frame.measure == "refusal")]
    nan = float("nan")
    for name, wanted in (("oracle", [nan, 1, 1, 0]), ("j", [nan, 1, 1, 0, nan])):
        found = mine[mine.instrument == name].sort_values("prompt").value.to_list()
        assert found[: len(wanted)] == pytest.approx(wanted, nan_ok=True)


def test_references_are_marked(run):
    frame = read_frames(run).outcomes
    marks = frame.groupby("cell")["reference"].first().to_dict()
    assert marks == {CELLS[0]: True, CELLS[1]: False}
    assert set(frame[frame.cell == CELLS[1]].baseline) == {CELLS[0]}


def test_templates_are_of_readable_harmful_refusals(run):
    found = read_frames(run).templates.set_index("cell").loc[CELLS[1]]
    assert (found["n_prompts"], found["refusals"]) == (9, 3)
    expected = template_features([REFUSED] * 3, [len(REFUSED)] * 3)
    assert found["mean_tokens_refusal"] == expected.mean_tokens_refusal


def test_a_cell_that_failed_has_no_outcomes(run):
    (run / "cells" / "m" / CELLS[1] / "cell.json").write_text('{"refusal": null, "tasks": {}}')
    frame = read_frames(run).outcomes
    assert set(frame.cell) == {CELLS[0]}


def test_written_truthfulness_has_its_rate_and_the_studys_mean(run):
    rows = [
        task_row("t0", 1.0, instrument="overlap", outcome="truthful"),
        task_row("t1", 0.5, instrument="overlap", outcome="neither"),
        task_row("t2", None, instrument="overlap", outcome="unread"),
    ]
    cell(run, CELLS[1], refuses=set(), tasks={"tqa": ("truthfulness", "overlap", rows)})
    frame = read_frames(run).outcomes
    means = frame.groupby("measure")["value"].mean()
    assert (means["tqa_truthful_rate"], means["tqa_overlap_study"]) == (0.5, 0.75)
    cell(run, CELLS[1], refuses=set(), tasks={"tqa": ("truthfulness", "mc1", rows[:2])})
    assert "tqa_mc1" in set(read_frames(run).outcomes.measure)


def test_a_run_is_analysed_as_its_spec_says_or_otherwise(run):
    found = analyse_run(run)
    (row,) = found["rows"]
    assert found["preset"]["name"] == "demo"
    assert row["deltas"]["refusal"]["n"] == 9
    assert row["deltas"]["refusal"]["lost"] == 6
    assert row["deltas"]["refusal"]["clusters"] == 5
    assert row["regime"] == "hidden_danger"
    assert row["second"]["instrument"] == "oracle"
    assert row["rtsi"] is not None or "not_measured" in found["rtsi"]
    other = analyse_run(run, preset="study", quality=None)
    assert other["preset"]["name"] == "study"
    assert other["rows"][0]["regime"] == "neutral"
    with pytest.raises(TableError, match="nope was not measured here; there are: refusal, "):
        analyse_run(run, quality="nope")


def test_a_folder_without_tables_is_no_finished_run(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"matrix.csv: not there; is this a run directory"):
        read_frames(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"spec.yaml"):
        analyse_run(tmp_path)


def test_a_task_that_could_not_be_measured_says_why(run):
    file = run / "cells" / "m" / CELLS[1] / "cell.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"not_measured": {"bertscore": "needs the extra metrics"}}))
    assert {"what": "bertscore", "where": "matrix", "reason": "needs the extra metrics"} in (
        analyse_run(run)["not_measured"]
    )


def test_a_damaged_table_is_named(run):
    (run / "gaps.csv").write_text('a,b\n"1,2\n3,4,5\n')
    with pytest.raises(RunDirectoryError, match=r"gaps.csv: damaged"):
        read_frames(run)
