"""What a user writes to describe a temperature factorial: YAML in, checked values out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mechprobe.experiments.spec import (
    MOST_ITEMS,
    MOST_TOKENS,
    ModelSpec,
    Name,
    Placed,
    Spec,
    Threads,
)
from mechprobe.experiments.spec_file import spec_text
from mechprobe.experiments.spec_judges import JudgeSpec
from mechprobe.experiments.spec_reading import Reading, read_spec

Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
SPECS = "specs/factorial"
"""Where the package keeps its own."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Requests(_Strict):
    """Where prompts of one kind come from."""

    source: str
    """See docs/tasks.md: `builtin`, `over-refusal`, `organism`, the CSV of AdvBench or XSTest, …"""
    prompts: int = Field(default=200, ge=2, le=MOST_ITEMS)
    """At most so many."""
    options: dict[str, Any] = {}
    """Of the source's loader, such as `split`."""


class FactorialSpec(Placed):
    """Models by precisions by temperatures by samples by prompts."""

    STAND_INS: ClassVar[dict[str, Any]] = {**Placed.STAND_INS, "judges": [{"judge": "rules"}]}
    kind: Literal["factorial"] = "factorial"
    """Tells its run directory from that of a matrix."""
    name: Name
    models: tuple[ModelSpec, ...] = Field(min_length=1, strict=False)
    """As in the spec of a matrix."""
    harmful: Requests = Requests(source="builtin")
    benign: Requests = Requests(source="over-refusal")
    template: Literal["chat", "raw"] = "chat"
    temperatures: tuple[Temperature, ...] = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=2, strict=False
    )
    """Rising, the first one 0: CDI is held against it."""
    samples: int = Field(default=5, ge=2, le=MOST_ITEMS)
    """Answers to each prompt at each temperature."""
    greedy_samples: int | None = Field(default=None, ge=2)
    """Answers at temperature 0, each asked for anew; as many as at the others by default."""
    seed: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1, le=MOST_TOKENS)
    judges: tuple[JudgeSpec, ...] = Field(min_length=1, strict=False)
    """Each reads every answer and their majority counts; with three or more one can be left out."""
    threads: Threads = None
    """As in the spec of a matrix."""

    @field_validator("temperatures")
    @classmethod
    def _rise_from_zero(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if given[0] != 0 or any(b <= a for a, b in pairwise(given)):
            raise ValueError("begin with 0 and let each be above the one before it")
        named = [f"{at:g}" for at in given]
        if twice := next((a for a, b in pairwise(named) if a == b), None):
            raise ValueError(f"two of them are {twice} to six digits, which is how files are named")
        return given

    @field_validator("judges")
    @classmethod
    def _are_different(cls, given: tuple[JudgeSpec, ...]) -> tuple[JudgeSpec, ...]:
        if len({one.judge for one in given}) < len(given):
            raise ValueError("a judge is named twice")
        return given

    @property
    def matrix(self) -> Spec:
        """The models and cells alone, which are planned as those of a matrix are."""
        return Spec(name=self.name, models=self.models)

    def samples_at(self, temperature: float) -> int:
        """Answers to each prompt at this temperature."""
        if temperature == 0 and self.greedy_samples is not None:
            return self.greedy_samples
        return self.samples


def load_factorial(given: Path | str) -> FactorialSpec:
    """Read a spec file, or a shipped spec by its name.

    Raises:
        SpecError: It cannot be read or is wrong; see `parse_factorial`.
    """
    return factorial_reading_of(given).require_right()


def factorial_reading_of(given: Path | str) -> Reading[FactorialSpec]:
    """Read a spec as `load_factorial` does, with what can be used beside its mistakes.

    Raises:
        SpecError: There is no such file, or it cannot be read.
    """
    text, where = spec_text(given, SPECS, "factorial")
    return read_spec(text, where, FactorialSpec, lambda spec: spec.matrix)


def parse_factorial(text: str, where: str) -> FactorialSpec:
    """Check a spec.

    Args:
        text: YAML.
        where: Its name in messages, a path.

    Raises:
        SpecError: Not YAML, an unknown, missing or repeated field, a wrong type or value, or cells
            that no matrix could have.
    """
    return read_spec(text, where, FactorialSpec, lambda spec: spec.matrix).require_right()


def canonical_factorial(spec: FactorialSpec) -> str:
    """The spec as YAML with every default written out: what a run directory belongs to."""
    content: dict[str, Any] = spec.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
