"""A spec becomes steps: prompts once per model, then cell by cell, then the tables.

Planning reads digests and loads nothing, so that a finished run is recognised in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import MechprobeError, TemplateError
from mechprobe.experiments.plan_cells import PlannedCell, plan_cells
from mechprobe.experiments.plan_probes import probe_parts
from mechprobe.experiments.rendered import draw_rows, rows_digest
from mechprobe.experiments.sources import file_digest, find_source
from mechprobe.experiments.spec import ModelSpec, Spec
from mechprobe.experiments.steps import Step
from mechprobe.experiments.suite import asked, canonical_task, set_name, wants

_HERE = "mechprobe.experiments"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order that works, and the cells in the order of the spec."""

    steps: tuple[Step, ...]
    cells: tuple[PlannedCell, ...]


def make_plan(spec: Spec) -> Plan:
    """Plan a spec.

    Raises:
        MechprobeError: A prompt file or chat template cannot be read, or the instrument is
            unknown. What is wrong with one cell's checkpoint blocks that cell alone.
    """
    if spec.tasks.refusal:
        from mechprobe.behavior.refusal import get_instrument

        get_instrument(spec.tasks.refusal.instrument)
    steps: list[Step] = []
    cells: list[PlannedCell] = []
    for model in spec.models:
        prompts = _prompts_step(spec, model)
        planned = plan_cells(spec, model)
        by_key = {one.cell.key: one for one in planned}
        steps.append(prompts)
        for one in planned:
            steps += _cell_steps(spec, one, planned, prompts.name)
        listed = [by_key[cell.key] for _, cell in spec.cells(model)]
        cells += [*listed, *(one for one in planned if one.reference)]
    steps.append(_tables_step(cells))
    return Plan(tuple(steps), tuple(cells))


def _prompts_step(spec: Spec, model: ModelSpec) -> Step:
    blocked = None
    choice = spec.tasks.multiple_choice
    params: dict[str, Any] = {
        "model": model.name,
        "tokenizer": model.tokenizer or model.source,
        "revision": model.revision,
        "chat_template": model.chat_template,
        "chat_template_digest": _template_digest(model.chat_template),
        "prompts": spec.prompts.model_dump(),
        "counts": _counts(spec),
        "more": [canonical_task(task) for task in spec.tasks.more],
        "questions": choice.questions if choice else 0,
        "questions_source": choice.source if choice else None,
    }
    params["rows"] = rows_digest(draw_rows(params))
    try:
        _, params["digest"] = find_source(params["tokenizer"], model.revision)
    except MechprobeError as error:
        blocked = str(error)
    return Step(
        name=f"prompts/{model.name}",
        action=f"{_HERE}.rendered:write_prompts",
        params=params,
        outputs=(f"prompts/{model.name}.jsonl",),
        label="prompts",
        blocked=blocked,
    )


def _counts(spec: Spec) -> dict[str, int]:
    """Prompts of each label, by set."""
    probes = spec.probes
    return {
        "refusal": spec.tasks.refusal.prompts if spec.tasks.refusal else 0,
        "fit": probes.fit if probes.run else 0,
        "select": probes.select if probes.run else 0,
        "evaluate": probes.evaluate if probes.run else 0,
        "gap": probes.kernel_gap.prompts if probes.kernel_gap else 0,
    }


def _template_digest(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return file_digest(Path(path))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise TemplateError(f"{path}: cannot be read ({reason})") from error


def _cell_steps(
    spec: Spec, one: PlannedCell, planned: list[PlannedCell], prompts: str
) -> Iterator[Step]:
    from mechprobe.behavior.refusal import instrument_digests

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

    checkpoint = step(
        "checkpoint",
        "measure:open_checkpoint",
        ("checkpoint.json",),
        blocked=one.blocked,
        label="quantize, load" if one.params["recipe"] else "load",
    ).name
    needs = (prompts, checkpoint)
    if task := spec.tasks.refusal:
        options = {"set": "refusal", "max_new_tokens": task.max_new_tokens}
        written = step(
            "generate-refusal",
            "measure:generate",
            ("generations/refusal.jsonl",),
            params=options,
            needs=needs,
            label="answers",
        )
        scored = {
            "instrument": task.instrument,
            "instruments": instrument_digests(),
            "world": spec.prompts.source == "organism",
        }
        step(
            "score-refusal",
            "measure:score_refusal",
            ("scores/refusal.jsonl",),
            params=scored,
            needs=(written.name,),
            label="refusal",
        )
    if spec.tasks.multiple_choice:
        step(
            "multiple-choice",
            "measure:answer_questions",
            ("scores/multiple_choice.jsonl",),
            needs=needs,
            label="four options",
        )
    for more in spec.tasks.more:
        answered: tuple[str, ...] = needs
        if wants(more) == "text":
            options = {"set": set_name(more), "max_new_tokens": more.max_new_tokens}
            written = step(
                f"generate-{more.label}",
                "measure:generate",
                (f"generations/{more.label}.jsonl",),
                params=options,
                needs=needs,
                label=f"{more.label}: answers",
            )
            answered = (*needs, written.name)
        step(
            f"score-{more.label}",
            "suite_scores:score_task",
            (f"scores/{more.label}.jsonl", f"scores/{more.label}.json"),
            params={
                "task": canonical_task(more),
                "items": asked(more).digest,
                "scoring": asked(more).scoring(more.instrument),
            },
            needs=answered,
            memory=2 * one.size if wants(more) == "answers" else 0,
            label=more.label,
        )
    if spec.probes.kernel_gap:
        native = step(
            "next-token",
            "measure:native_next_token",
            ("scores/next_token.npz",),
            needs=needs,
            label="native log-probabilities",
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
                memory=2 * one.size,  # float32 of what has 16 bits, and more of what has fewer
                label=part.label,
            )
            done += (f"{folder}/{part.name}",)
    if spec.probes.kernel_gap:
        step(
            "kernel-gap",
            "measure:kernel_gap",
            ("scores/kernel_gap.json",),
            needs=(*needs, native.name),
            memory=2 * one.size,
            label="kernel gap",
        )
    parts = tuple(s.name for s in steps)
    step(
        "cell",
        "summary:summarise_cell",
        ("cell.json", "probes.json"),
        params={
            "instrument": spec.tasks.refusal.instrument if spec.tasks.refusal else None,
            "more": [task.label for task in spec.tasks.more],
        },
        after=parts,
        label="summary",
    )
    yield from steps


def _tables_step(cells: list[PlannedCell]) -> Step:
    rows = [
        {
            "model": one.cell.model,
            "key": one.cell.key,
            "folder": one.folder,
            "baseline": one.cell.baseline_key,
            "reference": one.reference,
        }
        for one in cells
    ]
    return Step(
        name="tables",
        action=f"{_HERE}.matrix:write_tables",
        params={"cells": rows},
        outputs=("matrix.csv", "matrix.parquet", "references.csv", "gaps.csv"),
        after=tuple(f"{one.folder}/cell" for one in cells),
        label="tables",
    )
