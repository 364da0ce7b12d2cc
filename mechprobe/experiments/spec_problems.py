"""Every mistake of a spec that shows before its first forward pass; see docs/checks.md.

Only headers and names are read, so that `--plan` and a run of days say the same in seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechprobe.errors import MechprobeError, PreflightError
from mechprobe.experiments.cell_problems import Needs, add_cell_problems
from mechprobe.experiments.factorial_prompts import KINDS, add_requests
from mechprobe.experiments.factorial_spec import FactorialSpec
from mechprobe.experiments.plan import drawn_prompts, set_sizes
from mechprobe.experiments.plan_judges import judge_identity, judge_parts, judges_of
from mechprobe.experiments.rendered import draw_rows
from mechprobe.experiments.sources import is_away
from mechprobe.experiments.spec import Spec, SuiteTask
from mechprobe.experiments.spec_reading import Kind, Reading
from mechprobe.experiments.suite import absent, asked, scoring, wants
from mechprobe.preflight import Problems, require_writable


def spec_problems(
    spec: Spec, out: Path, *, local_only: bool = False, here: bool = True
) -> Problems:
    """Find what keeps a matrix from being measured.

    Args:
        spec: The matrix.
        out: Its run directory.
        local_only: Download nothing; what is still on the hub or untrained is not looked at.
        here: Cells run on this machine, with its devices and quantizers.
    """
    problems = Problems()
    with problems.of("output"):
        require_writable(out, folder=True)
    _check_tasks(spec, problems, local_only)
    probes = spec.probes
    needs = Needs(
        dense=bool(probes.run or probes.kernel_gap or any(map(_looks_inside, spec.tasks.more))),
        logits=not {"entropy", "calibration"}.isdisjoint(probes.run),
        layer=probes.layer if probes.run else None,
        refusal_tokens=probes.refusal_tokens if probes.run else (),
        here=here,
    )
    add_cell_problems(spec, needs, problems, local_only=local_only)
    return problems


def factorial_problems(spec: FactorialSpec, out: Path, *, local_only: bool = False) -> Problems:
    """Find what keeps a factorial from being measured; arguments as of `spec_problems`."""
    problems = Problems()
    with problems.of("output"):
        require_writable(out, folder=True)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        with problems.of("prompts"), spec.field(kind):
            add_requests(rows, kind, getattr(spec, kind).model_dump())
    for i, judge in enumerate(spec.judges):
        with problems.of("scorer"), spec.field("judges", i):
            judge_identity(judge)
    add_cell_problems(spec.matrix, Needs(), problems, local_only=local_only)
    return problems


def require_right_spec(reading: Reading[Kind], problems_of: Callable[[Kind], Problems]) -> Kind:
    """Return a spec; where it is wrong, what else keeps its cells from being measured is said too.

    Args:
        reading: Of its text.
        problems_of: `spec_problems` or `factorial_problems`, downloading nothing.

    Raises:
        PreflightError: One line for each mistake of the spec, then for each of the rest.
    """
    if reading.spec is not None and not reading.mistakes:
        return reading.spec
    problems = Problems()
    for mistake in reading.mistakes:
        problems.add("spec", "", mistake)
    if reading.spec is not None:
        problems.add_all(problems_of(reading.spec))
    raise PreflightError(problems.merged)


def _looks_inside(task: SuiteTask) -> bool:
    """Whether a task reads log-probabilities of the dense graph."""
    with contextlib.suppress(MechprobeError):
        return absent(task) is None and wants(task) == "answers"
    return False


def _check_tasks(spec: Spec, problems: Problems, local_only: bool) -> None:
    """Check prompts, questions, refusal scorers and judges, each of them."""
    from mechprobe.behavior.refusal import get_instrument

    if spec.tasks.refusal:
        with problems.of("scorer"), spec.field("tasks", "refusal", "instrument"):
            get_instrument(spec.tasks.refusal.instrument)
    sizes = {"counts": set_sizes(spec), "questions": 0, "more": []}
    with problems.of("prompts"), spec.field("prompts"):
        draw_rows({"prompts": spec.prompts.model_dump(), **sizes})
    for i, task in enumerate(spec.tasks.more):
        with problems.of("prompts"), spec.field("tasks", "more", i):
            if absent(task) is None:
                asked(task)
                if not (local_only and task.encoder and is_away(task.encoder)):
                    scoring(task)
    for at, judge in judges_of(spec):
        with problems.of("scorer"), spec.field(*at):
            judge_identity(judge)
    with problems.of("prompts"):
        drawn_prompts(spec)
        with problems.of("scorer"):
            judge_parts(spec)
