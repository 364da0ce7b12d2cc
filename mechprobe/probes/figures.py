"""What the probes' figures and tables share: names and colours."""

from __future__ import annotations

from pathlib import Path

from mechprobe.probes.observation import Facts

COLOURS = {"harmful": "#c0392b", "harmless": "#2471a3", "cell": "#c0392b", "baseline": "0.55"}
MARKERS = {"harmful": "o", "harmless": "^"}


def cell_name(facts: Facts) -> str:
    """A cell in one phrase: `org/model, AWQ-INT4 (dense)`; of a path only its last part."""
    path = Path(facts.source)
    source = path.name if path.is_absolute() else facts.source
    return f"{source}, {facts.precision} ({facts.kernel})"
