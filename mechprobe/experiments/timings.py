"""How long steps took on this machine: what estimates are made of. No result depends on it.

A line per finished step in the cache. Steps are alike that do the same action with the same
parameters on as many prompts, whatever the model; time is taken to grow with the declared memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.cache import cache_folder
from mechprobe.errors import MechprobeError
from mechprobe.experiments.rundir import RunDirectory, read_json
from mechprobe.experiments.steps import Outcome, Step
from mechprobe.textfiles import parse_json

_WHO = ("cell", "digest", "recipe", "tokenizer", "revision", "chat_template", "baseline_folder")
"""Parameters that say which model it is and not how much work."""
_FARTHEST = 8.0
"""A step of a model so many times larger or smaller was not measured."""


def _file() -> Path:
    return cache_folder() / "timings.jsonl"


def kind_of(step: Step, counts: Mapping[str, Any]) -> str:
    """What steps of the same work have in common, hex."""
    params = {name: value for name, value in step.params.items() if name not in _WHO}
    made = (step.params.get("recipe") or {}).get("to") if step.action.endswith("checkpoint") else ""
    precision = (step.params.get("cell") or {}).get("precision")
    content = [
        step.action,
        params,
        made,
        precision,
        bool(step.params.get("baseline_folder")),
        counts,
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def remember(
    steps: Sequence[Step], outcome: Outcome, run: RunDirectory, counts: Mapping[str, Any]
) -> None:
    """Keep the times of the steps that a run did; a cache that cannot be written is no matter."""
    lines = []
    for step in steps:
        result = outcome.results.get(step.name)
        if result is None or result.status != "done":
            continue
        with contextlib.suppress(MechprobeError, KeyError):
            seconds = read_json(run.marker(step.name))["seconds"]
            row = {"kind": kind_of(step, counts), "memory": step.memory, "seconds": seconds}
            lines.append(json.dumps(row) + "\n")
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, "".join(lines).encode())
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Timings:
    """Measured times by kind of step."""

    seen: Mapping[str, Sequence[tuple[int, float]]]
    """(memory, seconds) pairs."""

    def estimate(self, step: Step, counts: Mapping[str, Any]) -> float | None:
        """Seconds, scaled from the steps of the nearest size; None where none was measured."""
        found = self.seen.get(kind_of(step, counts), ())
        if not found:
            return None
        if step.memory == 0:
            return statistics.median(seconds for _, seconds in found)
        ratios = {m: max(m, step.memory) / max(min(m, step.memory), 1) for m, _ in found if m}
        nearest = min(ratios, key=lambda m: ratios[m], default=None)
        if nearest is None or ratios[nearest] > _FARTHEST:
            return None
        seconds = statistics.median(s for m, s in found if m == nearest)
        return seconds * step.memory / nearest


def measured_times() -> Timings:
    """What this machine remembers; a damaged line is skipped."""
    seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with contextlib.suppress(OSError):
        for line in _file().read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = parse_json(line)
                seen[row["kind"]].append((int(row["memory"]), float(row["seconds"])))
    return Timings(seen)
