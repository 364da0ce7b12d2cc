"""What a run would do, before anything starts: steps, downloads, memory, disk, time.

Nothing is downloaded, trained or loaded. Times come from steps that this machine has measured
and from nothing else; where there are none, the forecast says so.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import CheckpointError
from mechprobe.experiments import made
from mechprobe.experiments.acquire import ORGANISM, source_texts, unmade_sources
from mechprobe.experiments.loading import free_memory
from mechprobe.experiments.plan import Plan, make_plan
from mechprobe.experiments.plan_cells import nominal_bits
from mechprobe.experiments.rundir import RunDirectory, held_spec
from mechprobe.experiments.sources import is_away
from mechprobe.experiments.spec import Spec, canonical
from mechprobe.experiments.spec_problems import spec_problems
from mechprobe.experiments.steps import Result, Step, is_done, step_key
from mechprobe.experiments.timings import measured_times
from mechprobe.models.control_source import CONTROL
from mechprobe.models.source import download_bytes


@dataclass(frozen=True, slots=True)
class Download:
    """A checkpoint that is not on this disk."""

    source: str
    revision: str | None
    bytes: int | None
    """None where it cannot be asked for."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run would do and need."""

    run: str
    cells: int
    references: int
    steps: int
    steps_done: int
    train: list[str]
    """Organisms to be trained first."""
    build: list[str]
    """Controls to be built first."""
    downloads: list[Download]
    quantize: list[str]
    """`model/precision` of the checkpoints to be made."""
    memory_peak_bytes: int
    memory_peak_step: str
    memory_unknown: list[str]
    """Sources whose size is unknown before they are here."""
    memory_free_bytes: int
    disk_download_bytes: int | None
    disk_quantized_bytes: int
    disk_run_bytes: int | None
    """From the finished cells of this run; None where there is none."""
    disk_free_bytes: int
    seconds: float
    """Of the steps that can be estimated."""
    steps_estimated: int
    steps_unknown: int


def forecast(spec: Spec, out: Path) -> Forecast:
    """Look ahead.

    Args:
        spec: The matrix.
        out: Its run directory, which need not exist.

    Raises:
        PreflightError: The run would not start; the message names every reason.
    """
    spec_problems(spec, out, local_only=True, here=False).require_none(listed=True)
    plan = make_plan(spec, local_only=True)
    waiting = set(unmade_sources(spec))
    downloads = _downloads(spec)
    away = {one.source for one in downloads} | waiting
    todo = _todo(plan.steps, spec, out)
    times = measured_times()
    guesses = [times.estimate(step, plan.counts) for step in todo]
    known = [seconds for seconds in guesses if seconds is not None]
    peak = max(todo, key=lambda step: step.memory, default=None)
    quantize = [one for one in plan.cells if _must_be_made(one.params)]
    sizes = [one.bytes for one in downloads]
    return Forecast(
        run=str(out),
        cells=sum(not one.reference for one in plan.cells),
        references=sum(one.reference for one in plan.cells),
        steps=len(plan.steps),
        steps_done=len(plan.steps) - len(todo),
        train=_names(waiting, ORGANISM),
        build=_names(waiting, CONTROL),
        downloads=downloads,
        quantize=[f"{one.cell.model}/{one.cell.precision}" for one in quantize],
        memory_peak_bytes=peak.memory if peak else 0,
        memory_peak_step=peak.name if peak and peak.memory else "",
        memory_unknown=sorted(away),
        memory_free_bytes=free_memory(),
        disk_download_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        disk_quantized_bytes=sum(
            int(one.size * nominal_bits(one.cell.precision) / 16) for one in quantize
        ),
        disk_run_bytes=_run_bytes(plan, out),
        disk_free_bytes=shutil.disk_usage(_existing(out)).free,
        seconds=round(sum(known), 1),
        steps_estimated=len(known),
        steps_unknown=len(guesses) - len(known),
    )


def _names(sources: Iterable[str], prefix: str) -> list[str]:
    return sorted(text.removeprefix(prefix) for text in sources if text.startswith(prefix))


def _downloads(spec: Spec) -> list[Download]:
    away = [one for one in source_texts(spec) if is_away(*one)]
    sizes: list[int | None] = []
    with contextlib.suppress(CheckpointError):  # out of reach: nothing more is asked
        for text, revision in away:
            sizes.append(download_bytes(text, revision))
    sizes += [None] * (len(away) - len(sizes))
    return [Download(*one, size) for one, size in zip(away, sizes, strict=True)]


def _must_be_made(params: dict[str, Any]) -> bool:
    return params["recipe"] is not None and not made.entry(params["recipe"]).exists()


def _todo(steps: Sequence[Step], spec: Spec, out: Path) -> list[Step]:
    """Steps that would run, were everything to go well."""
    here = held_spec(out) == canonical(spec)
    run, results, todo = RunDirectory(out.absolute()), dict[str, Result](), list[Step]()
    for step in steps:
        key = step_key(step, results)
        if not here or not is_done(step, key, run):
            todo.append(step)
        results[step.name] = Result("done", key)
    return todo


def _run_bytes(plan: Plan, out: Path) -> int | None:
    """Bytes still to come, from what the finished cells of this run take."""
    folders = [out / one.folder for one in plan.cells]
    sizes = [
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in folders
        if (folder / "cell.json").exists()
    ]
    if not sizes:
        return None
    return int(sum(sizes) / len(sizes) * (len(folders) - len(sizes)))


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast_lines(found: Forecast) -> list[str]:
    """The forecast for people, a line each."""
    lines = [
        f"{found.run}: {found.cells} cells and {found.references} references, {found.steps} steps, "
        f"{found.steps_done} of them done"
    ]
    lines += [
        f"trains     organism {name} (minutes on two cores; kept in the cache)"
        for name in found.train
    ]
    lines += [
        f"builds     control {name} (minutes on two cores; kept in the cache)"
        for name in found.build
    ]
    for one in found.downloads:
        at = f" at {one.revision}" if one.revision else ""
        size = _size(one.bytes) if one.bytes is not None else "size unknown"
        lines.append(f"downloads  {one.source}{at}: {size}")
    if not found.downloads:
        lines.append("downloads  nothing")
    if found.quantize:
        lines.append(f"quantizes  {len(found.quantize)}: {', '.join(found.quantize)}")
    away = len(found.memory_unknown)
    unknown = f"; {away} sources are not here yet and not counted" if away else ""
    where = f" ({found.memory_peak_step})" if found.memory_peak_step else ""
    lines += [
        f"memory     at least {_size(found.memory_peak_bytes)} for weights at the peak{where}, "
        f"{_size(found.memory_free_bytes)} free{unknown}",
        f"disk       {_size(found.disk_download_bytes)} to download, about "
        f"{_size(found.disk_quantized_bytes)} of quantized checkpoints in the cache, "
        f"{_size(found.disk_run_bytes)} more in the run directory, "
        f"{_size(found.disk_free_bytes)} free",
    ]
    if found.steps_estimated + found.steps_unknown == 0:
        return [*lines, "time       nothing is left to do"]
    said = f"about {_time(found.seconds)} for {found.steps_estimated} steps"
    said = said if found.steps_estimated else "unknown"
    basis = "from times measured on this machine, scaled by size"
    basis = basis if found.steps_estimated else "no step like these was ever timed on this machine"
    rest = f"; {found.steps_unknown} steps were never timed here" if found.steps_estimated else ""
    return [*lines, f"time       {said}, {basis}{rest if found.steps_unknown else ''}"]
