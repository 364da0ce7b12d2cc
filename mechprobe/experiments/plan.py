"""A spec becomes steps: prompts once per model, then cell by cell, then the tables.

Planning reads digests and loads nothing, so that a finished run is recognised in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechprobe import stats
from mechprobe.experiments.analysing import analysis_step
from mechprobe.experiments.derived import code_digest
from mechprobe.experiments.plan_cells import PlannedCell, plan_cells
from mechprobe.experiments.plan_probes import probe_parts
from mechprobe.experiments.plan_prompts import prompts_step
from mechprobe.experiments.plan_tables import tables_step
from mechprobe.experiments.questions import question_rows
from mechprobe.experiments.rendered import draw_rows, rows_digest
from mechprobe.experiments.reporting import report_step
from mechprobe.experiments.spec import Spec
from mechprobe.experiments.steps import Step
from mechprobe.experiments.suite import (
    absent,
    asked,
    canonical_task,
    scoring,
    set_name,
    wants,
)
from mechprobe.generation.base import ANSWERS_VERSION

_HERE = "mechprobe.experiments"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order that works, and the cells in the order of the spec."""

    steps: tuple[Step, ...]
    cells: tuple[PlannedCell, ...]
    counts: Mapping[str, Any]
    """How many prompts each set has: what the time of a step depends on beside its parameters."""


def make_plan(spec: Spec, *, local_only: bool = False) -> Plan:
    """Plan a spec.

    Args:
        spec: The matrix.
        local_only: Download no checkpoint; what is not here has no digest.

    Raises:
        MechprobeError: A prompt file or chat template cannot be read, or the instrument is
            unknown. What is wrong with a checkpoint `spec_problems` says.
    """
    if spec.tasks.refusal:
        from mechprobe.behavior.refusal import get_instrument

        with spec.field("tasks", "refusal", "instrument"):
            get_instrument(spec.tasks.refusal.instrument)
    steps: list[Step] = []
    cells: list[PlannedCell] = []
    drawn = drawn_prompts(spec)
    for model in spec.models:
        prompts = prompts_step(model, "rendered:write_prompts", drawn, local_only=local_only)
        planned = plan_cells(spec, model, local_only=local_only)
        by_key = {one.cell.key: one for one in planned}
        steps.append(prompts)
        for one in planned:
            steps += _cell_steps(spec, one, planned, prompts.name)
        listed = [by_key[cell.key] for _, cell in spec.cells(model)]
        cells += [*listed, *(one for one in planned if one.reference)]
    steps += [tables_step(cells), analysis_step(spec, "tables"), report_step(spec, "analysis")]
    return Plan(tuple(steps), tuple(cells), set_sizes(spec))


def drawn_prompts(spec: Spec) -> dict[str, Any]:
    """What the prompts of every model are drawn from, and the digest of all that is drawn."""
    choice = spec.tasks.multiple_choice
    for i, task in enumerate(spec.tasks.more):
        if absent(task) is None:
            with spec.field("tasks", "more", i):
                asked(task)
    if choice and choice.source:
        with spec.field("tasks", "multiple_choice", "source"):
            question_rows(choice.source, choice.questions, spec.prompts.seed)
    params: dict[str, Any] = {
        "prompts": spec.prompts.model_dump(),
        "counts": set_sizes(spec),
        "more": [canonical_task(task) for task in spec.tasks.more if absent(task) is None],
        "questions": choice.questions if choice else 0,
        "questions_source": choice.source if choice else None,
    }
    with spec.field("prompts"):
        drawn = draw_rows(params)
    if not drawn:
        raise spec.mistake(("tasks",), "the spec measures nothing; name a task or a probe")
    return {**params, "rows": rows_digest(drawn)}


def set_sizes(spec: Spec) -> dict[str, int]:
    """Prompts of each label, by set."""
    probes = spec.probes
    return {
        "refusal": spec.tasks.refusal.prompts if spec.tasks.refusal else 0,
        "fit": probes.fit if probes.run else 0,
        "select": probes.select if probes.run else 0,
        "evaluate": probes.evaluate if probes.run else 0,
        "gap": probes.kernel_gap.prompts if probes.kernel_gap else 0,
    }


def _cell_steps(
    spec: Spec, one: PlannedCell, planned: list[PlannedCell], prompts: str
) -> Iterator[Step]:
    from mechprobe.behavior.refusal import instrument_digests
    from mechprobe.experiments.plan_judges import ORACLE, judge_parts

    folder, cell = one.folder, one.cell
    group = f"{cell.model}/{cell.key}"
    steps: list[Step] = []

    def step(name: str, action: str, outputs: tuple[str, ...], **more: Any) -> Step:
        params = {**one.params, **more.pop("params", {})}
        made_step = Step(
            name=f"{folder}/{name}",
            action=f"{_HERE}.{action}",
            params=params,
            outputs=tuple(f"{folder}/{path}" for path in outputs),
            cell=group,
            label=more.pop("label", name),
            **more,
        )
        steps.append(made_step)
        return made_step

    native_needs: dict[str, Any] = {
        "memory": one.native_bytes,
        "gpus": one.gpus if cell.engine == "transformers" else 0,
        "threads": spec.threads,
    }
    dense_needs: dict[str, Any] = {"memory": one.dense_bytes, "gpus": one.gpus}
    checkpoint = step(
        "checkpoint",
        "measure:open_checkpoint",
        ("checkpoint.json",),
        **native_needs,
        label="quantize, load" if one.params["recipe"] else "load",
    ).name
    needs = (prompts, checkpoint)
    judges = judge_parts(spec)

    def judged(name: str, answers: str) -> dict[str, str]:
        return {
            part.judge: step(
                part.name,
                "judge_steps:judge_answers",
                part.outputs,
                params=part.params,
                needs=(prompts, answers),
                label=f"{name}: {part.judge}",
            ).name
            for part in judges.get(name, ())
        }

    if task := spec.tasks.refusal:
        options = {"set": "refusal", "max_new_tokens": task.max_new_tokens}
        written = step(
            "generate-refusal",
            "measure:generate",
            ("generations/refusal.jsonl",),
            params=options,
            needs=needs,
            label="answers",
            version=ANSWERS_VERSION,
            **native_needs,
        )
        said = judged("refusal", written.name)
        scored = {
            "instrument": task.instrument,
            "instruments": instrument_digests(),
            "oracle": ORACLE in said,
        }
        step(
            "score-refusal",
            "measure:score_refusal",
            ("scores/refusal.jsonl",),
            params=scored,
            needs=(written.name, *([said[ORACLE]] if ORACLE in said else [])),
            label="refusal",
        )
    if spec.tasks.multiple_choice:
        step(
            "multiple-choice",
            "measure:answer_questions",
            ("scores/multiple_choice.jsonl",),
            needs=needs,
            label="four options",
            version=ANSWERS_VERSION,
            **native_needs,
        )
    for more in (task for task in spec.tasks.more if absent(task) is None):
        answered: tuple[str, ...] = needs
        if more.answers is not None:
            answered = (*needs, f"{folder}/generate-{more.answers}")
        elif wants(more) == "text":
            options = {"set": set_name(more), "max_new_tokens": more.max_new_tokens}
            written = step(
                f"generate-{more.label}",
                "measure:generate",
                (f"generations/{more.label}.jsonl",),
                params=options,
                needs=needs,
                label=f"{more.label}: answers",
                version=ANSWERS_VERSION,
                **native_needs,
            )
            answered = (*needs, written.name)
            judged(more.label, written.name)
        step(
            f"score-{more.label}",
            "suite_scores:score_task",
            (f"scores/{more.label}.jsonl", f"scores/{more.label}.json"),
            params={
                "task": canonical_task(more),
                "items": asked(more).digest,
                "scoring": scoring(more),
            },
            needs=answered,
            label=more.label,
            version=stats.VERSION,
            **{"text": {}, "letters": native_needs, "answers": dense_needs}[wants(more)],
        )
    if spec.probes.kernel_gap:
        native = step(
            "next-token",
            "measure:native_next_token",
            ("scores/next_token.npz",),
            needs=needs,
            label="native log-probabilities",
            version=ANSWERS_VERSION,
            **native_needs,
        )
    if spec.probes.run:
        base = next((p for p in planned if p.cell.key == cell.baseline_key), None)
        done = tuple(s.name for s in steps)
        for part in probe_parts(spec, base.folder if base else None):
            step(
                part.name,
                f"probed:{part.action}",
                part.outputs,
                params=part.params,
                needs=(
                    *needs,
                    *(f"{folder}/{name}" for name in part.needs if f"{folder}/{name}" in done),
                    *([f"{base.folder}/{name}" for name in part.baseline_needs] if base else []),
                ),
                label=part.label,
                version=part.version,
                **dense_needs,
            )
            done += (f"{folder}/{part.name}",)
    if spec.probes.kernel_gap:
        step(
            "kernel-gap",
            "measure:kernel_gap",
            ("scores/kernel_gap.json",),
            needs=(*needs, native.name),
            label="kernel gap",
            **dense_needs,
        )
    parts = tuple(s.name for s in steps)
    step(
        "cell",
        "summary:summarise_cell",
        ("cell.json", "probes.json"),
        params={
            "instrument": spec.tasks.refusal.instrument if spec.tasks.refusal else None,
            "more": [task.label for task in spec.tasks.more if absent(task) is None],
            "not_measured": {
                task.label: reason for task in spec.tasks.more if (reason := absent(task))
            },
            "judged": [[part.name, part.outputs[0]] for parts in judges.values() for part in parts],
        },
        after=parts,
        label="summary",
        code=code_digest("summary"),
    )
    yield from steps
