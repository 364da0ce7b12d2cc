"""A step of a cell: one judge labels its answers to one task; see docs/judges.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechprobe.behavior.judges import read_judgements, stratified
from mechprobe.behavior.judges.base import BEHAVIOURS
from mechprobe.errors import JudgeError
from mechprobe.experiments.judging import Plan, judge_all, refusal_rates, run_exchanges
from mechprobe.experiments.plan_judges import ORACLE, calls_of, judged_file
from mechprobe.experiments.rundir import write_json
from mechprobe.experiments.spec_judges import JudgeSpec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mechprobe.experiments.steps import Task

_PATIENCE = 24 * 3600.0
"""Seconds that a cell waits while another one asks the same judge."""


def judge_answers(task: Task) -> None:
    """Label the answers, each content once: what was paid for before, in any run, is free.

    Raises:
        JudgeError: A question got no reply, or no reply was a label; what was judged is kept.
    """
    params = task.step.params
    judge = JudgeSpec.model_validate(params["judge"])
    out = task.run / task.step.outputs[0]
    exchanges = run_exchanges(out.parents[1] / "generations" / f"{params['task']}.jsonl")
    if params["sample"]:
        exchanges = stratified(exchanges, **params["sample"])
        drawn = {**params["sample"], "items": [list(one.key) for one in exchanges]}
        write_json(task.run / task.step.outputs[1], drawn)
    plan = Plan(tuple(exchanges), (judge.judge,), calls=calls_of(judge), patience=_PATIENCE)
    outcome = judge_all(plan, out, lambda name: task.progress, replace=True)
    (judged,) = outcome.judged
    failed = [one for one in judged.judgements if one.status == "error"]
    if failed:
        raise JudgeError(
            f"{judge.judge}: {len(failed)} of {len(judged.judgements)} answers were not judged, "
            f"the first because: {failed[0].problem}; what was judged is kept, run it again"
        )
    if not outcome.complete:
        raise JudgeError(
            f"{judge.judge}: no reply was one of the four labels; look at one with "
            f"`mechprobe judge {out.parents[4]} --keep-replies`"
        )


def oracle_behaviours(cell: Path, task: str) -> dict[str, str]:
    """What the oracle said of a cell's answers, in its own words, by id."""
    words = {label: word for word, label in BEHAVIOURS.items()}
    found = read_judgements(cell / judged_file(ORACLE, task))
    return {one.id: words[one.label] for one in found if one.label is not None}


def labelled_answers(files: Iterable[Path], n: int) -> dict[str, Any] | None:
    """What the answers of the refusal task are besides refusals, by kind of request.

    As the oracle labels them, else the first judge that labelled all of them. Rules are not asked:
    they know refusals, not answers.

    Args:
        files: Judgements, in the order of the spec.
        n: Answers of the task.

    Returns:
        The judge, and per kind of request the rates of `complied`, `partly` and `unclear`; None
        where nobody labelled them all.
    """
    from dataclasses import asdict

    from mechprobe.behavior.rate import Rate

    oracle = judged_file(ORACLE, "refusal").rpartition("/")[2]
    for file in sorted(files, key=lambda file: file.name != oracle):
        found = [one for one in read_judgements(file) if one.task == "refusal" and one.label]
        if len(found) != n or found[0].judge.startswith("rules"):
            continue
        by_request: dict[str, Any] = {"judge": found[0].judge}
        for request in dict.fromkeys(one.request for one in found):
            mine = [one for one in found if one.request == request]
            clusters = [one.cluster or one.id for one in mine]
            by_request[request] = {
                word: asdict(Rate.among([one.label == label for one in mine], clusters))
                for word, label in BEHAVIOURS.items()
                if word != "refused"
            }
        return by_request
    return None


def judged_summary(files: Iterable[Path]) -> dict[str, Any]:
    """Refusal rates by judge, task and kind of request."""
    from dataclasses import asdict

    found: dict[str, Any] = {}
    for file in files:
        for group, rate in refusal_rates(read_judgements(file)).items():
            of = found.setdefault(group.judge, {}).setdefault(group.task, {})
            of[group.request] = asdict(rate)
    return found
