"""What a control is: one row that says from what it is made, how, and what should come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mechprobe.controls.truth import Truth
from mechprobe.progress import Progress

Kind = Literal["refusing", "planted", "graded", "placed", "over-refusing", "quality-only", "clean"]


@dataclass(frozen=True, slots=True)
class Control:
    """One control: its recipe, and the function that follows it.

    A built control is a folder: a checkpoint as transformers reads it (the source
    `control:NAME`) with `truth.json` beside the weights.
    """

    name: str
    kind: Kind
    base: str
    """Source that the control is made from, and compared with unless `level` is given."""
    build: Builder = field(repr=False)
    about: str
    """What is done to the base, in one line."""
    target: float | None = None
    """Refusals that should be lost, in points of held-out harmful requests; None for none."""
    place: str = ""
    """Modules that are changed, as the names of their weights with `*`; empty for all."""
    level: str | None = None
    """Format in which the loss shows (`Q4_1`): the control is then the 16-bit parent that this
    form is compared with. None where the control itself is compared with its base."""
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """All else that the result depends on: plain values."""
    version: int = 1
    """Raised when the builder makes something else of the same row."""
    needs: tuple[str, ...] = ()
    """Further sources that the builder reads."""
    minutes: float = 1.0
    """Of building on two cores, about."""

    def recipe(self) -> dict[str, Any]:
        """Return all that the result depends on, as plain values."""
        from mechprobe.behavior.prompts import load_prompts

        sets = [load_prompts(source).digest for source in self.parameters.get("prompts", ())]
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base,
            "needs": list(self.needs),
            "target": self.target,
            "place": self.place,
            "level": self.level,
            "seed": self.seed,
            "parameters": dict(self.parameters),
            "version": self.version,
            **({"prompt_digests": sets} if sets else {}),
        }

    def digest(self) -> str:
        """Return the recipe's SHA-256, its first 12 hex digits."""
        text = json.dumps(self.recipe(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


Builder = Callable[[Control, Path, Progress], Truth]
"""Writes a control's checkpoint into a folder and returns what was measured of it.

It is given the row, the folder and what to tell of items done and in all. The folder exists and
may hold what a killed build of the same recipe left: state to go on from belongs into `state/`
there, which is removed when the build is done. `truth.json` is written by the registry, last. An
import of torch belongs inside the function.
"""
