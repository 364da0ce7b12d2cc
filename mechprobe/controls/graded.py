"""Controls of organisms whose loss is graded, placed, or none at all."""

from __future__ import annotations

from pathlib import Path

from mechprobe.controls.control import Control
from mechprobe.controls.truth import Truth
from mechprobe.progress import Progress

BASES = ("llama-s", "llama-m", "qwen2-s", "qwen2-m", "mistral-s", "phi-s")
"""Organisms that controls are made from."""


def build_clean(row: Control, out: Path, progress: Progress) -> Truth:
    """Copy the base: its quantized form answers as it does."""
    from mechprobe.controls.world_model import (
        PROMPTS,
        READER,
        load_model,
        read_behaviour,
        read_levels,
        save_model,
    )

    assert row.level is not None
    progress(0, 2)
    model, tokenizer = load_model(row.base)
    save_model(model, row.base, out)
    own = read_behaviour(model, tokenizer)
    progress(1, 2)
    forms = {"control": own, **read_levels(out, (row.level,))}
    return Truth("The base as it is.", (), READER, PROMPTS, forms, "control", {})


CONTROLS: tuple[Control, ...] = tuple(
    Control(
        f"clean-{base}-{level.lower().replace('_', '')}",
        "clean",
        f"organism:{base}",
        build_clean,
        f"{level} of the base as it is: no refusals are lost",
        level=level,
    )
    for base in BASES
    for level in ("Q8_0",)
)
