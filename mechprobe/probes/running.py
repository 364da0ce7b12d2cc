"""The probes of a setup on one loaded model, in the order that they need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError
from mechprobe.holding import locked
from mechprobe.models.checkpoint import Checkpoint, no_graph
from mechprobe.probes import battery
from mechprobe.probes.baseline import require_comparable
from mechprobe.probes.folder import ProbeFolder
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.probes.saving import Saved
    from mechprobe.session import Model


def run(
    model: Model | Checkpoint,
    setup: battery.Setup,
    folder: str | Path | ProbeFolder,
    baseline: str | Path | ProbeFolder | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> dict[str, Saved]:
    """Observe a model once, then let each probe of the setup read it.

    Example:
        >>> model = mp.load("org/Model")                                  # doctest: +SKIP
        >>> setup = mp.probes.Setup(prompts)                              # doctest: +SKIP
        >>> mp.probes.run(model, setup, "probes/baseline")                # doctest: +SKIP
        >>> cell = mp.load("org/Model-AWQ")                               # doctest: +SKIP
        >>> mp.probes.run(cell, setup, "probes/awq", "probes/baseline")   # doctest: +SKIP

    Args:
        model: What `mechprobe.load` returned, or its checkpoint.
        setup: Prompts, and what is asked of them; the same for a baseline and its cells.
        folder: Gets the cell's files; see `mechprobe.probes.folder`.
        baseline: The folder of the baseline's probes; None where this model is a baseline.
        say: Told what is being done.
        progress: Told how far that is.

    Returns:
        By name of the probe, its result dataclass.

    Raises:
        CheckpointError: llama.cpp runs this model, which leaves nothing to look into.
        ArchitectureError: The baseline is another model.
        VocabularyError: A prompt holds an id that the model lacks.
        ParityError: The baseline saw other prompts.
        PromptFileError: A prompt set that a probe reads is missing.
        RunDirectoryError: Another process probes into this folder; the message says which.
    """
    checkpoint = model if isinstance(model, Checkpoint) else model.checkpoint
    here = folder if isinstance(folder, ProbeFolder) else ProbeFolder(folder)
    base = baseline if isinstance(baseline, ProbeFolder | None) else ProbeFolder(baseline)
    require_graph(checkpoint)
    battery.require_fit(checkpoint, setup, is_baseline=base is None)
    with locked_folder(here):
        return run_held(checkpoint, setup, here, base, say=say, progress=progress)


@contextmanager
def locked_folder(folder: ProbeFolder) -> Iterator[None]:
    """The folder for this process alone: two that probed into one would destroy each other's files.

    Raises:
        RunDirectoryError: Another process has it; the message says which.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path, "probes"):
        yield


def run_held(
    checkpoint: Checkpoint,
    setup: battery.Setup,
    here: ProbeFolder,
    base: ProbeFolder | None,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> dict[str, Saved]:
    """`run`, for whoever holds `locked_folder(here)` already."""
    what = checkpoint.source
    if base is not None:
        logits = setup.has("entropy", "calibration")
        require_comparable(checkpoint, setup.prompts, base.observation, logits=logits)
    say(f"{what}: observing")
    battery.observe_cell(checkpoint, setup, here, is_baseline=base is None, progress=progress)
    if base is None and not setup.study:
        battery.choose_tokens(checkpoint, setup, here, progress)
    found: dict[str, Saved] = {}
    for name in setup.probes:
        say(f"{what}: {name.replace('_', ' ')}")
        if name == "entropy":
            found[name] = battery.probe_entropy(setup, here, base)
        elif name == "refusal_direction":
            found[name] = battery.probe_direction(checkpoint, setup, here, base, progress)
        elif name == "calibration":
            if not setup.study:
                battery.read_answers(checkpoint, setup, here, progress)
            found[name] = battery.probe_calibration(setup, here, base)
        else:
            found[name] = battery.probe_neurons(checkpoint, setup, here, base, progress)
    return found


def require_graph(checkpoint: Checkpoint) -> None:
    """Refuse a model whose activations nobody can read.

    Raises:
        CheckpointError: It is a GGUF file that llama.cpp runs.
    """
    if checkpoint.module is None:
        raise CheckpointError(no_graph(checkpoint.source))
