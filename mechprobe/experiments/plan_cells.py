"""The cells of a model before anything is loaded: their sources, baselines and references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mechprobe.errors import CheckpointError, MechprobeError
from mechprobe.experiments import made
from mechprobe.experiments.sources import find_source, weight_bytes
from mechprobe.experiments.spec import SIXTEEN_BITS, CellSpec, ModelSpec, Spec
from mechprobe.models.cell import Cell

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


def plan_cells(spec: Spec, model: ModelSpec) -> list[PlannedCell]:
    """The spec's cells and the references they need, every baseline before what is held to it."""
    planned = [*_references(spec, model), *_cells(spec, model)]
    by_key = {one.cell.key: one for one in planned}
    return sorted(planned, key=lambda one: _generation(one.cell, by_key))


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


def _generation(cell: Cell, by_key: dict[str, PlannedCell]) -> int:
    """0 for a baseline, 1 for what is compared with it, and so on."""
    key = cell.baseline_key
    return 1 + _generation(by_key[key].cell, by_key) if key in by_key else 0
