"""A factorial becomes steps: prompts, then per cell one step of answers for each temperature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mechprobe.analysis.factorial import CellOf, Design
from mechprobe.behavior.judges import tells_unclear
from mechprobe.experiments.derived import code_digest
from mechprobe.experiments.factorial_prompts import KINDS, add_requests
from mechprobe.experiments.factorial_spec import FactorialSpec
from mechprobe.experiments.plan_cells import PlannedCell, plan_cells
from mechprobe.experiments.plan_judges import judge_identity, judged_file
from mechprobe.experiments.plan_prompts import prompts_step
from mechprobe.experiments.rendered import rows_digest
from mechprobe.experiments.steps import Step
from mechprobe.generation.base import ANSWERS_VERSION

_HERE = "mechprobe.experiments"
TABLES = "factorial"
"""The step that writes what was found."""
REPORT = "report"


@dataclass(frozen=True, slots=True)
class FactorialPlan:
    """Steps in an order that works, and what they will have measured."""

    steps: tuple[Step, ...]
    design: Design


def level(temperature: float) -> str:
    """What the files of one temperature are called."""
    return f"T{temperature:g}"


def judged_at(folder: str, judge: str, temperature: float) -> tuple[str, str]:
    """Step and file of one judge's labels of a cell's answers at one temperature."""
    file = judged_file(judge, level(temperature))
    return f"{folder}/judge-{file.partition('/')[2].removesuffix('.jsonl')}", f"{folder}/{file}"


def plan_factorial(spec: FactorialSpec) -> FactorialPlan:
    """Plan a factorial; nothing is loaded and nobody is asked.

    Raises:
        MechprobeError: Prompts or a chat template cannot be read, or a judge is unknown. What is
            wrong with a checkpoint `factorial_problems` says.
    """
    steps: list[Step] = []
    cells: list[PlannedCell] = []
    identities = {}
    for i, judge in enumerate(spec.judges):
        with spec.field("judges", i):
            identities[judge.judge] = judge_identity(judge)
    drawn = _drawn_requests(spec)
    for model in spec.models:
        prompts = prompts_step(model, "factorial_prompts:write_requests", drawn)
        steps.append(prompts)
        planned = plan_cells(spec.matrix, model)
        for one in planned:
            steps += _cell_steps(spec, one, prompts.name, identities)
        by_key = {one.cell.key: one for one in planned}
        cells += [by_key[cell.key] for _, cell in spec.matrix.cells(model)]
        cells += [one for one in planned if one.reference]
    design = _design(spec, cells)
    steps += _last_steps(spec, design, steps)
    return FactorialPlan(tuple(steps), design)


def _design(spec: FactorialSpec, cells: list[PlannedCell]) -> Design:
    return Design(
        tuple(
            CellOf(
                one.cell.model, one.cell.family, one.cell.key, one.cell.precision,
                one.cell.engine, one.cell.baseline_key or "", one.reference,
            )
            for one in cells
        ),
        spec.temperatures,
        {at: spec.samples_at(at) for at in spec.temperatures},
        tuple(one.judge for one in spec.judges),
        tuple(one.judge for one in spec.judges if not tells_unclear(one.judge)),
    )  # fmt: skip


def _drawn_requests(spec: FactorialSpec) -> dict[str, Any]:
    """What the prompts of every model are drawn from, and the digest of all that is drawn."""
    params: dict[str, Any] = {
        "harmful": spec.harmful.model_dump(),
        "benign": spec.benign.model_dump(),
        "template": spec.template,
    }
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        with spec.field(kind):
            add_requests(rows, kind, params[kind])
    return {**params, "rows": rows_digest(rows)}


def _cell_steps(
    spec: FactorialSpec, one: PlannedCell, prompts: str, identities: dict[str, str]
) -> Iterator[Step]:
    folder, group = one.folder, f"{one.cell.model}/{one.cell.key}"
    native: dict[str, Any] = {
        "cell": group,
        "memory": one.native_bytes,
        "gpus": one.gpus if one.cell.engine == "transformers" else 0,
        "threads": spec.threads,
    }
    checkpoint = Step(
        name=f"{folder}/checkpoint",
        action=f"{_HERE}.measure:open_checkpoint",
        params=one.params,
        outputs=(f"{folder}/checkpoint.json",),
        label="quantize, load" if one.params["recipe"] else "load",
        **native,
    )
    yield checkpoint
    for at in spec.temperatures:
        drawn = {
            "temperature": at,
            "samples": spec.samples_at(at),
            "seed": spec.seed,
            "max_new_tokens": spec.max_new_tokens,
        }
        answers = Step(
            name=f"{folder}/answers-{level(at)}",
            action=f"{_HERE}.factorial_answers:draw_answers",
            params={**one.params, **drawn},
            outputs=(f"{folder}/generations/{level(at)}.jsonl",),
            needs=(prompts, checkpoint.name),
            label=f"T = {at:g}",
            version=ANSWERS_VERSION,
            **native,
        )
        yield answers
        for judge in spec.judges:
            name, file = judged_at(folder, judge.judge, at)
            yield Step(
                name=name,
                action=f"{_HERE}.judge_steps:judge_answers",
                params={
                    "judge": judge.model_dump(),
                    "identity": identities[judge.judge],
                    "task": level(at),
                    "sample": None,
                },
                outputs=(file,),
                needs=(prompts, answers.name),
                cell=group,
                label=f"T = {at:g}: {judge.judge}",
            )


def _last_steps(spec: FactorialSpec, design: Design, steps: list[Step]) -> Iterator[Step]:
    judged = tuple(step.name for step in steps if step.action.endswith(":judge_answers"))
    yield Step(
        name=TABLES,
        action=f"{_HERE}.factorial_tables:write_factorial",
        params={
            "name": spec.name,
            "cells": [
                {
                    "model": one.model, "family": one.family, "cell": one.cell,
                    "precision": one.precision, "engine": one.engine, "baseline": one.baseline,
                    "reference": one.reference,
                }
                for one in design.cells
            ],
            "temperatures": list(design.temperatures),
            "samples": [design.samples[at] for at in design.temperatures],
            "judges": list(design.judges),
            "blind": list(design.blind),
        },
        outputs=("labels.parquet", "factorial.csv", "factorial.json"),
        after=judged,
        label="tables",
        code=code_digest("factorial"),
    )  # fmt: skip
    yield Step(
        name=REPORT,
        action=f"{_HERE}.factorial_tables:write_report",
        params={},
        outputs=("report.html", "figures"),
        needs=(TABLES,),
        label="report",
        code=code_digest("factorial report"),
    )
