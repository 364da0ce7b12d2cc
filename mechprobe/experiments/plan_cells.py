"""The cells of a model before anything is loaded: their sources, baselines and references."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mechprobe.errors import MechprobeError
from mechprobe.experiments import made
from mechprobe.experiments.sources import find_source, weight_bytes
from mechprobe.experiments.spec import SIXTEEN_BITS, CellSpec, ModelSpec, Spec
from mechprobe.models.cell import Cell
from mechprobe.models.gguf_config import READING
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.makeable import THROUGH, needs_export
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import read_table, stored_dtype

_LADDER_BITS = {
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q4_K_M": 4.8,
    "Q3_K_S": 3.5,
    "Q2_K": 2.6,
}
_DTYPES = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell, how to come by its checkpoint, and whether the spec asked for it."""

    cell: Cell
    params: dict[str, Any]
    """What every step of the cell depends on."""
    reference: bool
    """Added as a same-stack baseline; goes to references.csv."""
    to: str | None
    """What it is quantized to; None where its source is taken as it is."""
    size: int = 0
    """Bytes of its source's weights."""
    device: str = "cpu"

    @property
    def native_bytes(self) -> int:
        """Least memory of its packed weights; what it is made of counts while it is made."""
        return self.size

    @property
    def dense_bytes(self) -> int:
        """Least memory of its weights in float32."""
        stored = 16.0 if self.params["recipe"] else nominal_bits(self.cell.precision)
        return int(self.size * 32 / stored)

    @property
    def gpus(self) -> int:
        """Whether its graphs run on a GPU."""
        return int(self.device != "cpu")

    @property
    def folder(self) -> str:
        """Its folder in the run directory."""
        return f"cells/{self.cell.model}/{self.cell.key}"


def nominal_bits(precision: str) -> float:
    """Bits per weight that a label promises, about; 16 for one that promises none."""
    if precision in ("FP32", "F32", "FP64"):
        return 32.0
    if precision in _LADDER_BITS:
        return _LADDER_BITS[precision]
    if precision in ("FP16", "BF16", "F16"):
        return 16.0
    width = re.search(r"[0-9]+", precision)
    return float(width[0]) + 0.5 if width else 16.0


def plan_cells(spec: Spec, model: ModelSpec, *, local_only: bool = False) -> list[PlannedCell]:
    """The spec's cells and the references they need, every baseline before what is held to it.

    Args:
        spec: The matrix.
        model: One of its models.
        local_only: Download nothing; a cell whose source is not here has no digest.
    """
    references = _references(spec, model, local_only)
    planned = [*references, *_cells(spec, model, references, local_only)]
    by_key = {one.cell.key: one for one in planned}
    return sorted(planned, key=lambda one: _generation(one.cell, by_key))


def _cells(
    spec: Spec, model: ModelSpec, references: list[PlannedCell], local_only: bool
) -> Iterator[PlannedCell]:
    added = {one.cell.engine: one.cell.precision for one in references}
    for given, cell in spec.cells(model):
        baseline = cell.baseline
        if baseline is None and cell.engine in added and given.baseline is None:
            baseline = added[cell.engine]
        whole = Cell(**{**asdict(cell), "baseline": baseline})
        yield _planned(model, given, whole, local_only=local_only)


def _references(spec: Spec, model: ModelSpec, local_only: bool) -> list[PlannedCell]:
    """Same-stack baselines that the spec left out, where they can be made from the model."""
    if spec.baseline == "study":
        return []  # every cell of a model is held against one that the spec lists
    found = []
    own = {cell.key for given, cell in spec.cells(model) if given.baseline == cell.precision}
    cells = [cell for _, cell in spec.cells(model)]
    for engine in dict.fromkeys(cell.engine for cell in cells):
        same = [cell for cell in cells if cell.engine == engine]
        has = any(c.precision in SIXTEEN_BITS[engine] for c in same)
        held = all(cell.baseline or cell.key in own for cell in same)
        if has or held or model.source.endswith(".gguf"):
            continue
        precision = "F16" if engine == "llama.cpp" else _stored_precision(model, local_only)
        given = CellSpec(precision=precision, quantize="F16" if engine == "llama.cpp" else None)
        cell = Cell(model.name, precision, model.source, model.family, model.revision)
        found.append(_planned(model, given, cell, reference=True, local_only=local_only))
    return found


def _stored_precision(model: ModelSpec, local_only: bool) -> str:
    try:
        source, _ = find_source(model.source, model.revision, local_only=local_only)
        table = read_table(weight_files(source.path).files)
    except MechprobeError:
        return "FP16"  # the cell has the same trouble, and says so
    return _DTYPES[stored_dtype(table)]


def _planned(
    model: ModelSpec,
    given: CellSpec,
    cell: Cell,
    *,
    reference: bool = False,
    local_only: bool = False,
) -> PlannedCell:
    params: dict[str, Any] = {
        "cell": asdict(cell),
        "engine": cell.engine,
        "tokenizer": model.tokenizer or model.source,
        "chat_template": model.chat_template,
        "digest": None,
        "recipe": None,
    }
    if model.device != "cpu":
        params["device"] = model.device
    size = 0
    with contextlib.suppress(MechprobeError):  # `spec_problems` says which, before anything starts
        source, params["digest"] = find_source(cell.source, cell.revision, local_only=local_only)
        size = weight_bytes(source)
        if source.kind == "gguf":
            params["reading"] = READING
        if given.quantize:
            through = THROUGH if needs_export(source, given.quantize) else None
            params["recipe"] = made.recipe(
                cell.source, params["digest"], given.quantize, cell.revision, through=through
            )
            if source.kind == "gguf":  # what is made of it has 16 bits first
                size = 2 * sum(tensor.size for tensor in read_gguf(source.path).tensors.values())
    return PlannedCell(cell, params, reference, given.quantize, size, model.device)


def _generation(cell: Cell, by_key: dict[str, PlannedCell]) -> int:
    """0 for a baseline, 1 for what is compared with it, and so on."""
    key = cell.baseline_key
    return 1 + _generation(by_key[key].cell, by_key) if key in by_key else 0
