"""Work as a graph of steps, each keyed by the hash of its inputs.

A step is data: the name of a function and plain parameters. So its key is known without loading
anything heavy, and any engine (in process, Ray, a job array) can run it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from mechprobe.errors import MechprobeError
from mechprobe.experiments.fingerprints import fingerprint, unchanged
from mechprobe.experiments.rundir import RunDirectory, read_json, write_json
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.experiments.workbench import Workbench

Status = Literal["done", "reused", "failed", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work whose result is a set of files."""

    name: str
    """Unique; a path, so that its marker has a place: `cells/m/Q4_K_M@llama.cpp/refusal`."""
    action: str
    """`package.module:function`, called with a `Task`."""
    params: Mapping[str, Any]
    """Plain JSON values, all that the result depends on beside the steps in `needs`."""
    outputs: tuple[str, ...]
    """Files it writes, and folders that it alone fills, relative to the run directory."""
    version: int = 1
    """Raised when the code of an action that measures changes what it writes."""
    code: str = ""
    """Of an action that derives, the digest of its code; see `derived`."""
    needs: tuple[str, ...] = ()
    """Steps whose results it reads; when one fails, this one is skipped."""
    after: tuple[str, ...] = ()
    """Steps whose outcome it reports, failed or not."""
    cell: str | None = None
    """What it belongs to; steps of one cell share loaded weights and are sharded together."""
    label: str = ""
    """For people."""
    memory: int = 0
    """Bytes it needs at least, for whoever places it; 0 where nobody knows. No part of the key."""
    gpus: int = 0
    """GPUs it needs, for whoever places it. No part of the key."""
    threads: int | None = None
    """Of the CPU, for its engine; None is the engine's own choice. No part of the key."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended."""

    status: Status
    key: str
    error: str = ""

    @property
    def ok(self) -> bool:
        """Its files are there and current."""
        return self.status in ("done", "reused")

    @property
    def state(self) -> str:
        """What a step that reports this one depends on."""
        return self.key if self.ok else f"{self.status}: {self.error}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, step by step."""

    results: Mapping[str, Result]
    failures: tuple[str, ...] = field(default=())
    """Names of the failed steps, in order."""

    def count(self, status: Status) -> int:
        """Number of steps that ended so."""
        return sum(result.status == status for result in self.results.values())

    def as_dict(self) -> dict[str, Any]:
        """What `--json` says of the steps."""
        return {
            "steps": {kind: self.count(kind) for kind in STATUSES},
            "failures": {name: self.results[name].error for name in self.failures},
        }

    def failure_lines(self) -> list[str]:
        """One line per error, however many steps met it."""
        met: dict[str, list[str]] = {}
        for name in self.failures:
            met.setdefault(self.results[name].error, []).append(name)
        return [
            f"mechprobe: {names[0]}{f' (and {len(names) - 1} more)' if names[1:] else ''}: {error}"
            for error, names in met.items()
        ]


@dataclass(frozen=True, slots=True)
class Task:
    """What an action gets: its step, its key, and where to read and write."""

    step: Step
    key: str
    run: RunDirectory
    bench: Workbench
    results: Mapping[str, Result]
    """Results of the steps it needs or reports."""
    progress: Progress = silent
    """Called with batches done and in all."""


class Display(Protocol):
    """Shows a run as it goes."""

    def started(self, step: Step) -> None:
        """A step begins to run."""

    def advanced(self, step: Step, done: int, total: int) -> None:
        """A running step finished a batch."""

    def finished(self, step: Step, result: Result) -> None:
        """A step ended, or was found done."""


class StepEngine(Protocol):
    """The seam: whatever runs steps. `local` does it in this process."""

    def run(self, steps: Sequence[Step], run: RunDirectory, display: Display) -> Outcome:
        """Bring every step to an end, in an order that respects `needs` and `after`."""
        ...


def step_key(step: Step, results: Mapping[str, Result]) -> str:
    """SHA-256 over everything the step's result depends on, hex."""
    content = [
        step.name,
        step.action,
        step.version,
        step.params,
        list(step.outputs),
        [results[name].key for name in step.needs],
        [results[name].state for name in step.after],
        *([step.code] if step.code else []),
    ]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(step: Step, key: str, run: RunDirectory) -> bool:
    """Whether the marker holds this key and every output is as the step left it."""
    marker = run.marker(step.name)
    if not marker.exists():
        return False
    try:
        held = read_json(marker)
        outputs = dict(held["outputs"]) if held["key"] == key else None
    except (MechprobeError, KeyError, TypeError, ValueError):
        return False  # a damaged marker is no marker
    if outputs is None or set(outputs) != set(step.outputs):
        return False
    return all(unchanged(run / path, seen) for path, seen in outputs.items())


def mark_done(step: Step, key: str, run: RunDirectory, seconds: float) -> None:
    """Write the marker, the last act of a step."""
    outputs = {path: fingerprint(run / path) for path in step.outputs}
    missing = [path for path, seen in outputs.items() if seen is None]
    assert not missing, f"step {step.name} did not write {missing}"
    run.failure(step.name).unlink(missing_ok=True)
    write_json(
        run.marker(step.name),
        {
            "key": key,
            "outputs": outputs,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        },
    )


def resolve_action(step: Step) -> Callable[[Task], None]:
    """Import the function that a step names."""
    module, _, name = step.action.partition(":")
    return cast(Callable[[Task], None], getattr(import_module(module), name))


def check_graph(steps: Sequence[Step]) -> None:
    """Every step is named once and follows what it depends on: a defect of the plan otherwise."""
    seen: set[str] = set()
    for step in steps:
        assert step.name not in seen, f"two steps named {step.name}"
        unknown = [name for name in (*step.needs, *step.after) if name not in seen]
        assert not unknown, f"{step.name} depends on {unknown}, which do not come before it"
        seen.add(step.name)


def shard(steps: Sequence[Step], index: int, count: int) -> list[Step]:
    """The part of a plan that job `index` of `count` runs: whole cells, with what they need.

    Cells that follow each other stay together, since they mostly share a model and its baseline.
    Steps that report others (tables) are left to the run without `--shard`.
    """
    cells = list(dict.fromkeys(step.cell for step in steps if step.cell))
    mine = set(cells[index * len(cells) // count : (index + 1) * len(cells) // count])
    by_name = {step.name: step for step in steps}
    wanted: set[str] = set()
    pending = [s.name for s in steps if s.cell in mine and not s.after]
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += by_name[name].needs
    return [step for step in steps if step.name in wanted]
