"""Where built controls lie: `control:NAME` as a source of a model (see `mechprobe.controls`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from mechprobe.cache import cache_folder
from mechprobe.errors import CheckpointError

CONTROL: Final = "control:"
SHIPPED: Final = Path(__file__).parents[1] / "controls" / "data"
MARKER: Final = "truth.json"
"""Written last into a control's folder: a folder without it is not finished."""


def control_cache() -> Path:
    """Return the folder of the controls that were built on this machine."""
    return cache_folder() / "controls"


def control_path(name: str) -> Path:
    """Return the folder of a built control, the newest where its recipe has changed since.

    Raises:
        CheckpointError: It is not built.
    """
    if (SHIPPED / name / MARKER).is_file():
        return SHIPPED / name
    form = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")
    built = [
        folder
        for folder in control_cache().glob("*")
        if form.fullmatch(folder.name) and (folder / MARKER).is_file()
    ]
    if not built:
        raise CheckpointError(
            f"no control {name} is built here; mechprobe controls list: which there are; "
            f"mechprobe controls build {name}: build it"
        )
    return max(built, key=lambda folder: (folder / MARKER).stat().st_mtime_ns)
