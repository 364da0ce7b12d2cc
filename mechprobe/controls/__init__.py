"""Controls: checkpoints with known truth, on which an instrument can be right or wrong.

A control is declared once, as a row of `CONTROLS` in the module that builds it; `registry` collects
the rows. Importing this package loads no torch. See docs/controls.md.
"""

from __future__ import annotations

from mechprobe.controls.control import Control
from mechprobe.controls.registry import (
    build_side_by_side,
    built_folder,
    control,
    controls,
    ensure_built,
    is_of_world,
    with_prompts,
)
from mechprobe.controls.truth import Behaviour, Truth, read_truth

__all__ = [
    "Behaviour",
    "Control",
    "Truth",
    "build_side_by_side",
    "built_folder",
    "control",
    "controls",
    "ensure_built",
    "is_of_world",
    "read_truth",
    "with_prompts",
]
