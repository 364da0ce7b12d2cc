"""Probes on one checkpoint, beside its baseline: never two models in memory together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.probe_setup import ProbeRequest, setup_or_problems
from mechprobe.models.load import require_device
from mechprobe.models.source import resolve_source
from mechprobe.preflight import (
    Problems,
    check_checkpoint,
    require_hooks,
    require_same_model,
    require_same_vocabulary,
    require_writable,
)
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.probes.battery import Setup

BASELINE = "baseline"
"""Folder of the baseline's probes, within the cell's."""


def run_probes(
    request: ProbeRequest,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Probe a checkpoint, and its baseline first where there is one.

    Args:
        request: What to probe; `out` gets the cell's files, `out/baseline` the baseline's.
        say: Told what is being done.
        warn: Told what the results will warn of, as soon as it is known.
        progress: Told how far it is with what `say` was told of.

    Returns:
        By probe, the result dataclass of the cell.

    Raises:
        MechprobeError: A checkpoint or the prompts cannot be used; found before anything is loaded
            where headers and names show it.
        RunDirectoryError: Another process probes into `out`; the message says which.
    """
    setup = require_ready(request)
    from mechprobe.probes import battery
    from mechprobe.probes.baseline import baseline_warnings
    from mechprobe.probes.folder import ProbeFolder
    from mechprobe.probes.running import locked_folder, run, run_held

    for note in next(iter(setup.prompts.values())).notes:
        warn(f"prompts: {note}")
    here, baseline = ProbeFolder(request.out), None
    with ExitStack() as held:  # from the first file on, the folder is ours to the end
        if request.baseline is not None:
            say(f"baseline {request.baseline}")
            baseline = ProbeFolder(request.out / BASELINE)
            checkpoint = _load(request, request.baseline)
            for line in baseline_warnings(checkpoint.quant.precision):
                warn(line)
            battery.require_fit(checkpoint, setup, is_baseline=True)
            held.enter_context(locked_folder(here))
            # a baseline is measured, not steered: what its cells are compared with needs no answer
            alone = replace(setup, causal=False)
            before = run(checkpoint, alone, baseline, say=say, progress=progress)
            if "refusal_direction" in before and before["refusal_direction"].unmet:
                lacking = ", ".join(before["refusal_direction"].unmet)
                warn(f"of the baseline's refusal direction is not measured: {lacking}")
            del checkpoint
            gc.collect()
        say(f"model {request.model}")
        checkpoint = _load(request, request.model, revision=request.revision, expect=request.expect)
        battery.require_fit(checkpoint, setup, is_baseline=baseline is None)
        if baseline is None:
            held.enter_context(locked_folder(here))
        return run_held(checkpoint, setup, here, baseline, say=say, progress=progress)


def require_ready(request: ProbeRequest) -> Setup:
    """Check everything that a request names, by headers and texts alone.

    Returns:
        What `make_setup` makes.

    Raises:
        MechprobeError: Something cannot be used; where there is more than one mistake, a
            `PreflightError` names each.
    """
    from mechprobe.behavior.refusal import get_instrument

    problems = Problems()
    with problems.of("output"):
        require_writable(request.out, folder=True)
    with problems.of("scorer"):
        get_instrument(request.instrument)
    with problems.of("device"):
        if request.device != "cpu":
            require_device(request.device)
    named = {request.model: (request.revision, request.expect)}
    if request.baseline is not None:
        named.setdefault(request.baseline, (None, None))
    headers = {
        text: check_checkpoint(
            problems, text, revision=revision, expect=expect, kernel=request.kernel,
            layer=request.layer,
        )
        for text, (revision, expect) in named.items()
    }  # fmt: skip
    renderer = None
    with problems.of("source"):
        text = request.tokenizer or request.baseline or request.model
        renderer = resolve_source(text, revision=request.revision)
    for header in headers.values():
        if header is None:
            continue
        with problems.of("architecture"):
            if request.kernel == "native":
                require_hooks(header)
        baseline = headers.get(request.baseline or request.model)
        with problems.of("same model"):
            if baseline is not None:
                logits = not {"entropy", "calibration"}.isdisjoint(request.probes)
                require_same_model(header.shape, baseline.shape, logits=logits)
            with problems.of("vocabulary"):
                if renderer is not None:
                    require_same_vocabulary(header, renderer)
    setup = setup_or_problems(request, problems, renders=renderer is not None)
    problems.require_none()
    assert setup is not None
    return setup


def _load(request: ProbeRequest, source: str, **more: Any) -> Checkpoint:
    from mechprobe import session

    return session.load(
        source,
        kernel=request.kernel,
        device=request.device,
        tokenizer=request.tokenizer or request.baseline,
        **more,
    ).checkpoint
