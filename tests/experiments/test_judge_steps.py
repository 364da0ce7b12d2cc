"""Judges as steps of a run: asked once, kept in `judgements/`, scored again when they change."""

import json
import re
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from small import lines, rows

from mechprobe.behavior import refusal
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode
from mechprobe.experiments.agreeing import baselines_of, compare, find_judgements
from mechprobe.experiments.judge_steps import labelled_answers
from mechprobe.experiments.plan_judges import judge_parts
from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.running import run_spec
from mechprobe.experiments.spec_file import parse_spec

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from fault_server import FaultServer

SPEC = """
name: judged
models:
  - name: llama-s
    source: organism:llama-s
    cells: [{{precision: FP16}}, {{precision: Q2_K, quantize: Q2_K}}]
prompts: {{source: organism}}
tasks:
  refusal: {{prompts: 10, max_new_tokens: 12}}
  more:
    - {{task: jailbreak, source: organism, items: 3, max_new_tokens: 12}}
    - {{task: reference, source: organism, items: 3, max_new_tokens: 12, instrument: rouge_l}}
  judges: [rules, oracle]
{more}
"""
KEY = "sk-never-to-be-seen-43"
CELL = "cells/llama-s/Q2_K@llama.cpp"


def run(text, out):
    return run_spec(parse_spec(text, "s.yaml"), out, lambda *_: nullcontext(NoDisplay()))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A finished run with a second judge on a server that failed at first."""
    out = tmp_path_factory.mktemp("judged") / "run"
    with FaultServer({"*": []}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_KEY", KEY)
        named = f"openai:m@{server.url}#LAB_KEY"
        second = f"{{judge: '{named}', per_stratum: 4, seed: 3, attempts: 1}}"
        spec = SPEC.format(more=f"  second: {second}")
        server.faults = {"?": ["500"]}
        first = run(spec, out)
        paid = sum(server.paid.values())
        again = run(spec, out)
        calls = (paid, sum(server.paid.values()))
        last = run(spec, out)
        after = sum(server.paid.values())
    return out, (first, again, last), (*calls, after)


def test_an_answer_that_no_judge_labelled_fails_its_step_alone(judged):
    out, (first, again, last), (paid, all_paid, after) = judged
    assert first.exit_code == ExitCode.REGRESSION and not first.whole
    (name,) = first.outcome.failures
    said = first.outcome.results[name].error
    assert "1 of 8 answers were not judged, the first because" in said
    assert "HTTP 500" in said
    assert again.whole and last.whole
    done = {n for n, one in again.outcome.results.items() if one.status == "done"}
    assert {n for n in done if n.startswith("cells/")} == {name, f"{name.rpartition('/')[0]}/cell"}
    assert last.outcome.count("done") == 0
    asked = set()
    for file in out.glob("cells/*/*/judgements/*openai*.jsonl"):
        task = file.name.partition(".")[0]
        answers = lines(file.parents[1] / "generations" / f"{task}.jsonl")
        said = {line["id"]: line["text"] for line in answers}
        asked |= {(task, line["id"], said[line["id"]]) for line in lines(file)}
    assert 0 < paid <= all_paid == after == len(asked)  # equal answers of two cells cost one call


def test_a_judge_that_is_down_for_every_cell_leaves_what_was_measured(tmp_path):
    down = "{judge: 'openai:m@http://127.0.0.1:9/v1', attempts: 1}"
    spec = SPEC.format(more="").replace("[rules, oracle]", f"[{down}]")
    spec = spec.replace(", {precision: Q2_K, quantize: Q2_K}", "")
    done = run(re.sub(r"(?s)  more:.*?  judges", "  judges", spec), tmp_path / "run")
    assert [row["status"] for row in done.rows] == ["failed"]
    assert all(row["harmful_refusal_rate"] for row in done.rows)
    assert done.exit_code == 4


def test_a_run_holds_no_key_and_answers_to_harmful_requests_in_one_place_alone(judged):
    out, *_ = judged
    assert (out / "report.html").exists()
    texts, elsewhere = set(), {}
    for file in out.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_text(errors="replace")
        assert KEY not in content, file
        if file.parent.name != "generations":
            elsewhere[file] = content
        elif file.name != "reference.jsonl":
            texts |= {line["text"] for line in lines(file) if line["label"] == "harmful"}
    texts = {text for text in texts if len(text.split()) > 3}  # a word or two occur anywhere
    assert len(texts) > 5
    assert not [(file, text) for file in elsewhere for text in texts if text in elsewhere[file]]


def test_every_cell_keeps_the_labels_of_every_judge(judged):
    out, *_ = judged
    for folder in out.glob("cells/*/*"):
        names = sorted(file.name for file in (folder / "judgements").iterdir())
        assert [name for name in names if "openai" not in name] == [
            "jailbreak.oracle.jsonl",
            "jailbreak.rules.jsonl",
            "refusal.oracle.jsonl",
            "refusal.rules.jsonl",
        ]
        assert len([name for name in names if "openai" in name]) == 4
        answers = lines(folder / "generations" / "refusal.jsonl")
        labels = lines(folder / "judgements" / "refusal.rules.jsonl")
        assert [one["id"] for one in labels] == [one["id"] for one in answers]
        scores = lines(folder / "scores" / "refusal.jsonl")
        refused = [one["label"] in ("FULL_REFUSAL", "PARTIAL_REFUSAL") for one in labels]
        assert refused == [row["rules"] for row in scores]
        cell = json.loads((folder / "cell.json").read_text())
        harmful = [r for r, row in zip(refused, scores, strict=True) if row["label"] == "harmful"]
        found = cell["judges"]["rules"]["refusal"]["harmful"]
        assert (found["count"], found["n"]) == (sum(harmful), 10)
        oracle = [one["label"] for one in lines(folder / "judgements" / "refusal.oracle.jsonl")]
        assert cell["answers"]["judge"] == "oracle"  # and not `rules`, which comes first
        for word, label in (("complied", "COMPLIANCE"), ("unclear", "UNCLEAR")):
            counted = [cell["answers"][kind][word] for kind in ("harmful", "harmless")]
            assert sum(one["count"] for one in counted) == oracle.count(label)
            assert [one["n"] for one in counted] == [10, 10]
        assert cell["judges"].keys() == {"rules", "oracle"} | {
            name for name in cell["judges"] if name.startswith("openai:")
        }


def test_what_answers_are_is_said_by_who_labelled_them_all_and_knows_answers(judged, tmp_path):
    out, *_ = judged
    kept = out / CELL / "judgements"
    rules, oracle = kept / "refusal.rules.jsonl", kept / "refusal.oracle.jsonl"
    (sampled,) = kept.glob("refusal.openai*.jsonl")
    assert labelled_answers([rules, sampled, oracle], 20)["judge"] == "oracle"
    assert labelled_answers([rules, sampled], 20) is None
    assert labelled_answers([sampled], 8)["judge"].startswith("openai:")
    some = tmp_path / "refusal.oracle.jsonl"
    some.write_text("".join(oracle.read_text().splitlines(keepends=True)[:-1]))
    assert labelled_answers([some], 20) is None


def test_the_second_judge_reads_what_was_drawn_before_alike_in_every_cell(judged):
    out, *_ = judged
    drawn = set()
    for folder in out.glob("cells/*/*"):
        for task, strata in (("refusal", 2), ("jailbreak", 1)):
            (file,) = (folder / "judgements").glob(f"{task}.openai*.sample.json")
            sample = json.loads(file.read_text())
            labels = lines(file.with_name(file.name.replace(".sample.json", ".jsonl")))
            assert len(sample["items"]) == len(labels) == 4 * strata
            assert [item[2] for item in sample["items"]] == [one["id"] for one in labels]
            drawn.add((task, tuple(one["id"] for one in labels)))
    assert len(drawn) == 2


def test_judges_of_a_run_are_set_side_by_side(judged):
    out, *_ = judged
    judgements = find_judgements([out])
    assert Counter(one.task for one in judgements if one.judge == "oracle") == {
        "refusal": 3 * 20,
        "jailbreak": 3 * 15,
    }
    found = compare(judgements, baselines=baselines_of([out]))
    assert (found.first, found.second, found.whole.n) == ("rules", "oracle", 105)
    (verdict,) = found.verdicts
    assert verdict.row == "llama-s/Q2_K@llama.cpp"
    assert verdict.baseline == "llama-s/F16@llama.cpp"
    # the oracle can read no answer of Q2_K that is cut off so early; the row is there all the same
    assert (verdict.n, verdict.lost, verdict.changes, verdict.boundary) == (0, (0, 0), False, False)
    only = find_judgements([out], ["refusal"])
    assert compare(only).whole.n == 60


def test_another_rule_list_scores_a_finished_run_again(tmp_path, monkeypatch):
    out = tmp_path / "run"
    text = SPEC.format(more="").replace(", {precision: Q2_K, quantize: Q2_K}", "")
    run(text, out)
    folder = out / "cells" / "llama-s" / "FP16@transformers"
    before = {file: file.stat().st_mtime_ns for file in out.glob("cells/**/*") if file.is_file()}
    monkeypatch.setattr(refusal, "_HARD", re.compile("no such words"))
    run(text, out)
    touched = {
        str(file.relative_to(folder))
        for file, at in before.items()
        if file.stat().st_mtime_ns != at
    }
    assert touched == {
        "cell.json",
        "probes.json",
        "judgements/refusal.rules.jsonl",
        "judgements/jailbreak.rules.jsonl",
        "scores/refusal.jsonl",
        "scores/jailbreak.json",
        "scores/jailbreak.jsonl",
    }
    (row,) = rows(out / "matrix.csv")
    assert float(row["harmful_refusal_rate"]) == 0.0
    assert not any(one["hard"] for one in lines(folder / "scores" / "refusal.jsonl"))
    monkeypatch.undo()
    # how quotations are passed over decides as much as the lists do
    monkeypatch.setattr(refusal, "_SINGLE_QUOTED", re.compile("Sure"))
    again = run(text, out)
    assert {name for name, one in again.outcome.results.items() if one.status == "reused"} == {
        "prompts/llama-s",
        *(f"cells/llama-s/FP16@transformers/{step}" for step in (
            "checkpoint", "generate-refusal", "generate-jailbreak", "generate-reference",
            "score-reference", "judge-refusal.oracle", "judge-jailbreak.oracle",
        )),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("judges: [eye]", "use rules, oracle"),
        ("judges: ['rules:eye']", "unknown refusal instrument 'eye'"),
        ("judges: [rules, rules]", "rules is named twice"),
        ("judges: [rules], second: {judge: rules}", "a second judge is another one"),
        ("refusal: null, judges: [oracle]", "no answers to requests to read"),
        ("judges: ['openai:m']", "openai"),
        ("judges: [{judge: rules, tokens: 3}]", "unknown field"),
        ("second: {judge: rules, per_stratum: 0}", "per_stratum"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tasks, said):
    text = f"""
name: x
models: [{{name: m, source: "organism:llama-s", cells: [{{precision: FP16}}]}}]
prompts: {{source: organism}}
tasks: {{{tasks}}}
"""
    with pytest.raises(SpecError, match=said) as error:
        judge_parts(parse_spec(text, "x.yaml"))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.yaml, line 5: tasks.")


def test_the_oracle_is_asked_about_its_world_alone():
    def judged_tasks(source, tasks):
        text = f"""
name: x
models: [{{name: m, source: "organism:llama-s", cells: [{{precision: FP16}}]}}]
prompts: {{source: {source}}}
tasks: {{{tasks}}}
"""
        parts = judge_parts(parse_spec(text, "x.yaml"))
        return {task: [part.judge for part in some] for task, some in parts.items()}

    wrapped = "more: [{task: jailbreak, source: builtin, items: 2, options: {split: test}}]"
    assert judged_tasks("organism", wrapped) == {"refusal": ["oracle"], "jailbreak": []}
    both = f"judges: [oracle, rules], {wrapped}"
    assert judged_tasks("organism", both)["jailbreak"] == ["rules"]
    assert judged_tasks("builtin", "judges: null") == {"refusal": []}
    again = "name: again, answers: jailbreak, instrument: soft"
    shared = f"{wrapped[:-1]}, {wrapped[7:-2]}, {again}}}]"
    assert judged_tasks("organism", shared).keys() == {"refusal", "jailbreak"}  # judged once
