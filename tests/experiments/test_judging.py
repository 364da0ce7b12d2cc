"""Judging a real run: what the oracle says as a judge is what the run's own scores hold."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import CELLS, lines

from mechprobe import stats
from mechprobe.behavior.agreement import row_verdicts
from mechprobe.behavior.judges import Judgement
from mechprobe.behavior.tasks import Item, Task, judged
from mechprobe.behavior.tasks.requests import REFUSAL
from mechprobe.errors import SpecError
from mechprobe.experiments.judging import Plan, estimate, find_exchanges, judge_all, refusal_rates


def test_a_run_is_judged_as_it_was_scored(finished, tmp_path):
    _, run, _ = finished
    exchanges = find_exchanges([run])
    refusals = tuple(one for one in exchanges if one.task == "refusal")
    same_stack = {"llama-s/F16@llama.cpp"}
    assert {one.row for one in refusals} == {f"llama-s/{key}" for key in CELLS} | same_stack
    plan = Plan(refusals, ("oracle", "rules"))
    outcome = judge_all(plan, tmp_path / "j.jsonl", lambda name: lambda done, total: None)
    assert outcome.complete
    said = {"refused": "FULL_REFUSAL", "partly": "PARTIAL_REFUSAL", "complied": "COMPLIANCE",
            "unclear": "UNCLEAR"}  # fmt: skip
    rates = refusal_rates(outcome.judgements)
    for key in CELLS:
        scores = lines(run / "cells" / "llama-s" / key / "scores" / "refusal.jsonl")
        oracle = {
            one.id: one.label for one in outcome.judgements
            if one.judge == "oracle" and one.row == f"llama-s/{key}"
        }  # fmt: skip
        assert oracle == {row["id"]: said[row["oracle"]] for row in scores}
        for request in ("harmful", "harmless"):
            by_rules = [row["rules"] for row in scores if row["label"] == request]
            found = rates["rules", f"llama-s/{key}", "refusal", request]
            assert (found.count, found.n) == (sum(by_rules), len(by_rules))


def test_unclear_is_in_no_rate_and_stands_beside_it():
    """As `mechprobe score` reads the same labels."""
    labels = ["FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR", "UNCLEAR", None]
    given = [
        Judgement(str(i), "t", "m", 0, "harmful", str(i), "j", "", "d", label, "labelled")
        for i, label in enumerate(labels)
    ]
    (rate,) = refusal_rates(given).values()
    assert (rate.count, rate.n, rate.unclear, rate.unread) == (2, 3, 2, 1)
    assert (rate.low, rate.high) == stats.wilson(2, 3)
    assert rate.left_out == "2 UNCLEAR (40.0 %), 1 without a label"
    items = tuple(Item(str(i), f"p {i}", label="harmful") for i in range(5))
    scored = Task("refusal/x", REFUSAL, items, "x").score(labels[:5], judged("j"))
    (score,) = scored.scores
    assert (score.value, score.n) == (rate.rate, rate.n)
    (row,) = row_verdicts(
        [(one, one) for one in (*given, *(replace(one, row="q") for one in given))], {"q": "m"}
    )
    assert row.n == 3


def test_free_judges_cost_nothing(finished):
    plan = Plan(find_exchanges([Path(finished[1])]), ("rules",))
    ((_, load),) = estimate(plan)
    assert (load.calls, load.prompt_tokens, load.completion_tokens) == (0, 0, 0)


def test_a_second_judge_is_another_one():
    with pytest.raises(SpecError, match="named twice"):
        Plan((), ("rules",), second="rules")
    with pytest.raises(SpecError, match="name one at least"):
        Plan((), ())
