"""Further tasks of a run: asked, scored, in the matrix; mistakes are one line before anything."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from small import CELLS, lines, rows

from mechprobe.behavior.tasks import load_task
from mechprobe.errors import PromptFileError, SpecError
from mechprobe.experiments.plan import make_plan
from mechprobe.experiments.spec import SuiteTask
from mechprobe.experiments.spec_file import parse_spec
from mechprobe.experiments.suite import asked, scoring, wants
from mechprobe.experiments.suite_scores import suite_columns
from mechprobe.organisms.solve import solve

SPEC = """
name: x
models: [{{name: m, source: "organism:llama-s", cells: [{{precision: FP16}}]}}]
prompts: {{source: organism}}
tasks: {{more: [{}]}}
"""


def cells(finished):
    _, out, _ = finished
    return {cell: out / "cells" / "llama-s" / cell for cell in CELLS}


def test_written_answers_are_scored_as_rouge_score_does(finished):
    items = {item.id: item for item in load_task("reference", "organism").items}
    for row, folder in zip(rows(finished[1] / "matrix.csv"), cells(finished).values(), strict=True):
        answers = lines(folder / "generations" / "reference.jsonl")
        rouge = RougeScorer(["rougeL"], use_stemmer=True)
        found = [
            rouge.score(items[a["id"]].references[0], a["text"])["rougeL"].fmeasure for a in answers
        ]
        assert len(found) == 12
        assert float(row["reference_quality_value"]) == pytest.approx(np.mean(found), abs=1e-6)


def test_options_are_scored_item_by_item(finished):
    right = {item.id: item for item in load_task("bbq", "organism").items}
    table = rows(finished[1] / "matrix.csv")
    for row, folder in zip(table, cells(finished).values(), strict=True):
        scored = lines(folder / "scores" / "bbq.jsonl")
        assert len(scored) == 24
        for one in scored:
            item = right[one["item"]]
            letter = "ABC"[one["chosen"]] if one["chosen"] is not None else None
            assert one["value"] == float(letter == solve(item.prompt))
        for group in ("ambiguous", "disambiguated"):
            mine = [s["value"] for s in scored if s["category"] == group or group in s.values()]
            assert float(row[f"bbq_accuracy_{group}_value"]) == pytest.approx(
                np.mean(mine), abs=1e-6
            )
            assert int(row[f"bbq_accuracy_{group}_n"]) == len(mine) > 5


def test_what_moved_is_the_difference_to_the_baseline(finished):
    table = {row["precision"]: row for row in rows(finished[1] / "matrix.csv")}
    reference = rows(finished[1] / "references.csv")[0]
    name = "reference_quality"
    for cell in ("Q4_K_M", "Q2_K"):
        moved = float(table[cell][f"{name}_value"]) - float(reference[f"{name}_value"])
        assert float(table[cell][f"{name}_delta"]) == pytest.approx(moved, abs=2e-6)
    assert table["FP16"][f"{name}_delta"] == ""
    assert table["Q2_K"]["reference_prompts"] == reference["reference_prompts"] != ""


def test_other_prompts_are_not_compared():
    score = {"measure": "quality", "group": "all", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    mine = {"reference": {"instrument": "rouge_l", "prompts": "a", "scores": [score]}}
    other = {"reference": {"instrument": "rouge_l", "prompts": "b", "scores": [score]}}
    with pytest.raises(Exception, match="cell: reference"):
        suite_columns(mine, other, "cell")
    assert suite_columns(mine, mine, "cell")["reference_quality_delta"] == 0.0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("{task: bqq}", "unknown task 'bqq'"),
        ("{task: reference, source: organism, instrument: rouge}", "unknown instrument 'rouge'"),
        ("{task: bbq, source: organism, options: {m: 3}}", "bbq: no option 'm'"),
        ("{task: bbq, source: organism, options: {n: .nan}}", "option 'n' is nan: input should"),
        ("{task: refusal, source: organism}", "refusal is taken"),
        ("{task: bbq, source: organism}, {task: bbq, source: organism}", "bbq is taken"),
        ("{task: bbq, name: Two words}", "name: string should match"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(task, said):
    with pytest.raises(SpecError, match=said) as error:
        make_plan(parse_spec(SPEC.format(task), "spec.yaml"))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_its_task(tmp_path):
    task = f"{{task: bbq, source: {tmp_path / 'none.jsonl'}}}"
    with pytest.raises(
        PromptFileError, match=r"spec\.yaml, line \d+: tasks\.more\[0\]: bbq: .*none\.jsonl"
    ):
        make_plan(parse_spec(SPEC.format(task), "spec.yaml"))


def test_what_an_engine_is_asked_for_follows_from_the_instrument():
    def given(name):
        return SuiteTask(task="bbq", source="organism", items=8, instrument=name)

    assert [wants(given(name)) for name in (None, "letters", "parsed")] == [
        "letters",
        "letters",
        "text",
    ]
    assert len(asked(given(None))) == 8


def test_scores_by_an_encoder_go_stale_with_their_definition(tmp_path):
    found = set()
    for name, content in (("one", "{}"), ("two", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        given = SuiteTask(
            task="reference", source="organism", instrument="bertscore", layer=1,
            encoder=str(tmp_path / name),
        )  # fmt: skip
        assert asked(given).scoring() in scoring(given)  # the version of its kind
        found.add(scoring(given))
    assert len(found) == 2
