"""A spec becomes steps: prompts once per model, then cell by cell, then the tables.

Planning reads digests and loads nothing, so that a finished run is recognised in a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import CheckpointError, MechprobeError, TemplateError
from mechprobe.experiments import made
from mechprobe.experiments.rendered import draw_rows, rows_digest
from mechprobe.experiments.sources import file_digest, find_source, weight_bytes
from mechprobe.experiments.spec import SIXTEEN_BITS, CellSpec, ModelSpec, Spec
from mechprobe.experiments.steps import Step
from mechprobe.models.cell import Cell

_HERE = "mechprobe.experiments"
_DTYPES = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell, how to come by its checkpoint, and whether the spec asked for it."""

    cell: Cell
    params: dict[str, Any]
    """What every step of the cell depends on."""
    reference: bool
    """Added as a same-stack baseline; goes to references.csv."""
    blocked: str | None
    size: int = 0
    """Bytes of its source's weights."""

    @property
    def folder(self) -> str:
        """Its folder in the run directory."""
        return f"cells/{self.cell.model}/{self.cell.key}"


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
        planned = [*_references(spec, model), *_cells(spec, model)]
        # a cell reads its baseline's direction: baselines come first
        by_key = {one.cell.key: one for one in planned}
        planned.sort(key=lambda one: _generation(one.cell, by_key))
        steps.append(prompts)
        for one in planned:
            steps += _cell_steps(spec, one, planned, prompts.name)
        listed = [by_key[cell.key] for _, cell in spec.cells(model)]
        cells += [*listed, *(one for one in planned if one.reference)]
    steps.append(_tables_step(cells))
    return Plan(tuple(steps), tuple(cells))


def _generation(cell: Cell, by_key: dict[str, PlannedCell]) -> int:
    """0 for a baseline, 1 for what is compared with it, and so on."""
    key = _baseline_key(cell)
    return 1 + _generation(by_key[key].cell, by_key) if key in by_key else 0


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
        "refusal": spec.tasks.refusal.prompts if spec.tasks.refusal else 0,
        "questions": choice.questions if choice else 0,
        "questions_source": choice.source if choice else None,
        "fit": spec.probes.refusal_direction.fit if spec.probes.refusal_direction else 0,
        "evaluate": spec.probes.refusal_direction.evaluate if spec.probes.refusal_direction else 0,
        "gap": spec.probes.kernel_gap.prompts if spec.probes.kernel_gap else 0,
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


def _template_digest(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return file_digest(Path(path))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise TemplateError(f"{path}: cannot be read ({reason})") from error


def _cells(spec: Spec, model: ModelSpec) -> Iterator[PlannedCell]:
    added = {one.cell.engine: one.cell.precision for one in _references(spec, model)}
    for given, cell in spec.cells(model):
        baseline = cell.baseline
        if baseline is None and cell.engine in added and given.baseline is None:
            baseline = added[cell.engine]
        yield _planned(model, given, Cell(**{**asdict(cell), "baseline": baseline}))


def _references(spec: Spec, model: ModelSpec) -> list[PlannedCell]:
    """Same-stack baselines that the spec left out, where they can be made from the model."""
    found = []
    cells = [cell for _, cell in spec.cells(model)]
    for engine in dict.fromkeys(cell.engine for cell in cells):
        same = [cell for cell in cells if cell.engine == engine]
        has = any(c.precision in SIXTEEN_BITS[engine] for c in same)
        if has or all(cell.baseline for cell in same) or model.source.endswith(".gguf"):
            continue
        precision = "F16" if engine == "llama.cpp" else _stored_precision(model)
        given = CellSpec(precision=precision, quantize="F16" if engine == "llama.cpp" else None)
        cell = Cell(model.name, precision, model.source, model.family, model.revision)
        found.append(_planned(model, given, cell, reference=True))
    return found


def _stored_precision(model: ModelSpec) -> str:
    import json

    try:
        source, _ = find_source(model.source, model.revision)
        config = json.loads((source.path / "config.json").read_text())
    except (MechprobeError, OSError, ValueError):
        return "FP16"  # the cell is blocked by the same trouble, and says so
    stored = config.get("dtype") or config.get("torch_dtype")
    return _DTYPES.get(str(stored), "FP32")


def _planned(
    model: ModelSpec, given: CellSpec, cell: Cell, *, reference: bool = False
) -> PlannedCell:
    blocked = None
    params: dict[str, Any] = {
        "cell": asdict(cell),
        "engine": cell.engine,
        "tokenizer": model.tokenizer or model.source,
        "chat_template": model.chat_template,
        "digest": None,
        "recipe": None,
    }
    size = 0
    try:
        source, params["digest"] = find_source(cell.source, cell.revision)
        size = weight_bytes(source)
        if given.quantize:
            if source.kind != "folder":
                raise CheckpointError(f"{cell.source}: quantize from the transformers folder")
            params["recipe"] = made.recipe(
                cell.source, params["digest"], given.quantize, cell.revision
            )
    except MechprobeError as error:
        blocked = str(error)
    return PlannedCell(cell, params, reference, blocked, size)


def _cell_steps(
    spec: Spec, one: PlannedCell, planned: list[PlannedCell], prompts: str
) -> Iterator[Step]:
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
        options = {"max_new_tokens": task.max_new_tokens}
        written = step(
            "generate-refusal",
            "measure:generate_refusal",
            ("generations/refusal.jsonl",),
            params=options,
            needs=needs,
            label="answers",
        )
        scored = {"instrument": task.instrument, "world": spec.prompts.source == "organism"}
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
    if spec.probes.kernel_gap:
        native = step(
            "next-token",
            "measure:native_next_token",
            ("scores/next_token.npz",),
            needs=needs,
            label="native log-probabilities",
        )
    if probe := spec.probes.refusal_direction:
        base = next((p for p in planned if p.cell.key == _baseline_key(cell)), None)
        name = "refusal-direction"
        step(
            name,
            "measure:probe_direction",
            ("probes/refusal_direction.json", "probes/refusal_direction.safetensors"),
            params={
                **probe.model_dump(),
                "instrument": spec.tasks.refusal.instrument if spec.tasks.refusal else "hard",
                "baseline_folder": base.folder if base else None,
            },
            needs=(*needs, *([f"{base.folder}/{name}"] if base else [])),
            memory=2 * one.size,  # float32 of what has 16 bits, and more of what has fewer
            label="refusal direction",
        )
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
        params={"instrument": spec.tasks.refusal.instrument if spec.tasks.refusal else None},
        after=parts,
        label="summary",
    )
    yield from steps


def _baseline_key(cell: Cell) -> str | None:
    return f"{cell.baseline}@{cell.engine}" if cell.baseline else None


def _tables_step(cells: list[PlannedCell]) -> Step:
    rows = [
        {
            "model": one.cell.model,
            "key": one.cell.key,
            "folder": one.folder,
            "baseline": _baseline_key(one.cell),
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
