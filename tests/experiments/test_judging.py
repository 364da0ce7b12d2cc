"""Judging a real run: what the oracle says as a judge is what the run's own scores hold."""

from pathlib import Path

import pytest
from small import CELLS, lines

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


def test_free_judges_cost_nothing(finished):
    plan = Plan(find_exchanges([Path(finished[1])]), ("rules",))
    ((_, load),) = estimate(plan)
    assert (load.calls, load.prompt_tokens, load.completion_tokens) == (0, 0, 0)


def test_a_second_judge_is_another_one():
    with pytest.raises(SpecError, match="named twice"):
        Plan((), ("rules",), second="rules")
    with pytest.raises(SpecError, match="name one at least"):
        Plan((), ())
