"""All four probes on one cell: one observational pass, then what each makes of it.

A baseline comes first and leaves a folder: its observation, its refusal tokens, its selected
direction, its weights at the layers of the neurons. Every other cell reads that folder, so that two
models are never in memory together. Each function here is one resumable piece of work; what it
needs of a live model it is given.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechprobe.activations.points import hook_names, n_layers
from mechprobe.errors import SpecError, StaleStoreError
from mechprobe.models.rendering import require_answer_next
from mechprobe.probes import (
    calibration,
    entropy,
    neuron_weights,
    refusal_direction,
    refusal_tokens,
    safety_neurons,
)
from mechprobe.probes.counting import counting
from mechprobe.probes.direction import RefusalDirection
from mechprobe.probes.direction_result import RefusalDirectionResult
from mechprobe.probes.fitting import Twins, fit_directions
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.observation import Need, observe, require_whole, wanted_of
from mechprobe.probes.refusals import read_refusals
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.behavior.multiple_choice import Question
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts
    from mechprobe.probes.calibration import CalibrationResult
    from mechprobe.probes.entropy import EntropyResult
    from mechprobe.probes.refusal_tokens import RefusalTokens
    from mechprobe.probes.safety_neurons import SafetyNeuronsResult

Probe = Literal["entropy", "refusal_direction", "calibration", "safety_neurons"]
PROBES: tuple[Probe, ...] = get_args(Probe)
EVALUATE = ("evaluate/harmful", "evaluate/harmless")


@dataclass(frozen=True, slots=True)
class Setup:
    """What is asked of every cell of a model."""

    prompts: Mapping[str, EncodedPrompts]
    """`fit/…`, `select/…` and `evaluate/…`, each `harmful` and `harmless`; those that
    `prompt_sets` names."""
    probes: tuple[Probe, ...] = PROBES
    study: bool = False
    """As arXiv 2606.10154 measures: see `docs/probes.md` for every difference."""
    twins: Twins = ()
    """Rows of the fitting prompts that differ by a small edit."""
    clusters: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By prompt set, which prompts are resampled together."""
    questions: tuple[EncodedPrompts, Sequence[Question]] | None = None
    """Labelled questions for calibration."""
    tokens: RefusalTokens | None = None
    """In place of those found in the baseline's refusals."""
    place: tuple[int, int] | None = None
    """Position and layer of the direction, in place of the selected one."""
    causal: bool = True
    """Steer by generation, and patch neurons."""
    instrument: str = "hard"
    max_new_tokens: int = 32
    seed: int = 0

    def has(self, *probes: Probe) -> bool:
        """Whether any of them is asked for."""
        return any(probe in self.probes for probe in probes)


def prompt_sets(
    probes: Iterable[Probe], *, study: bool = False, tokens: bool = False, place: bool = False
) -> frozenset[str]:
    """Which prompt sets the probes read or let the model answer; no others are needed.

    Args:
        probes: Those that are asked for.
        study: As in `Setup`.
        tokens: Whether refusal tokens are named, so that none are looked for.
        place: Whether the direction's place is named, so that none is selected.
    """
    asked = set(probes)
    found = {*EVALUATE}
    if study:
        return frozenset(found)
    selects = "refusal_direction" in asked and not place
    needs = [
        *(() if tokens and not selects else refusal_tokens.needs()),
        *(refusal_direction.needs() if "refusal_direction" in asked else ()),
        *(safety_neurons.needs(1) if "safety_neurons" in asked else ()),
    ]
    return frozenset(found | {need.prompts for need in needs})


def needs_of(setup: Setup, checkpoint: Checkpoint, *, is_baseline: bool) -> tuple[Need, ...]:
    """The union of what the probes read of a cell."""
    post = setup.prompts[EVALUATE[0]].post_instruction
    found: list[Need] = []
    if setup.has("entropy"):
        found += entropy.needs()
    if setup.has("calibration"):
        found += calibration.needs(study=setup.study)
    if setup.has("refusal_direction"):
        found += refusal_direction.needs(post, study=setup.study)
    if setup.has("safety_neurons"):
        neurons = any(name.endswith("mlp.hook_post") for name in hook_names(checkpoint))
        found += safety_neurons.needs(
            n_layers(checkpoint), post, study=setup.study, neurons=neurons
        )
    if is_baseline and not setup.study and setup.tokens is None:
        found += refusal_tokens.needs()
    return tuple(found)


def require_fit(checkpoint: Checkpoint, setup: Setup, *, is_baseline: bool) -> tuple[Need, ...]:
    """What will be read of a cell, once it is known that the cell and the prompts have it.

    Raises:
        SpecError: The model has no such layer.
        PromptFileError: A prompt set is missing, or a prompt is in two of them.
        TemplateError: The first token of an answer is not the one after a prompt.
    """
    layers = n_layers(checkpoint)
    if setup.place is not None and not 0 <= setup.place[1] < layers:
        raise SpecError(f"layer {setup.place[1]}: this model has layers 0 to {layers - 1}")
    for prompts in setup.prompts.values():
        require_answer_next(prompts, "probes")
    return wanted_of(setup.prompts, needs_of(setup, checkpoint, is_baseline=is_baseline))


def observe_cell(
    checkpoint: Checkpoint,
    setup: Setup,
    folder: ProbeFolder,
    *,
    is_baseline: bool,
    progress: Progress = silent,
) -> None:
    """The one observational pass; what a folder holds damaged, or of other inputs, is replaced."""
    needs = require_fit(checkpoint, setup, is_baseline=is_baseline)
    path = folder.observation_path
    try:
        require_whole(path)
        found = observe(checkpoint, setup.prompts, needs, path, progress=progress)
    except StaleStoreError:
        shutil.rmtree(path)
        found = observe(checkpoint, setup.prompts, needs, path, progress=progress)
    folder.add_tokens("observational", found.facts.forward_tokens)


def choose_tokens(
    checkpoint: Checkpoint, setup: Setup, folder: ProbeFolder, progress: Progress = silent
) -> RefusalTokens:
    """Refusal tokens of a baseline: those given, else those its own refusals begin with."""
    found = setup.tokens
    if found is None:
        with counting(checkpoint) as count:
            refusals = read_refusals(
                checkpoint,
                setup.prompts["select/harmful"],
                instrument=setup.instrument,
                max_new_tokens=setup.max_new_tokens,
                progress=progress,
            )
        folder.add_tokens("generated, for refusal tokens", count.tokens)
        found = refusal_tokens.find(folder.observation, refusals.openings, checkpoint.tokenizer)
        n = len(refusals.refused)
        if refusals.thinking > n / 2:  # the template does not say that this model thinks
            why = f"{refusals.thinking} of {n} answers begin with a thought, not with a refusal"
            found = replace(found, ids=(), pieces=(), auc=None, problem=why)
    folder.save_tokens(found)
    return found


def read_answers(
    checkpoint: Checkpoint, setup: Setup, folder: ProbeFolder, progress: Progress = silent
) -> None:
    """What calibration holds probabilities against: generated refusals, labelled questions."""
    with counting(checkpoint) as count:
        folder.save_refusals(
            {
                name: read_refusals(
                    checkpoint,
                    setup.prompts[name],
                    instrument=setup.instrument,
                    max_new_tokens=setup.max_new_tokens,
                    progress=progress,
                )
                for name in EVALUATE
            }
        )
    folder.add_tokens("generated, for calibration", count.tokens)
    if setup.questions is None:
        folder.forget_questions()
    else:
        with counting(checkpoint) as count:
            folder.save_questions(calibration.ask(checkpoint, *setup.questions))
        folder.add_tokens("labelled", count.tokens)


def probe_entropy(setup: Setup, folder: ProbeFolder, baseline: ProbeFolder | None) -> EntropyResult:
    """Entropy, from the observations alone."""
    result = entropy.measure(
        folder.observation,
        baseline.observation if baseline else None,
        tokens=_tokens(setup, folder, baseline),
        clusters=setup.clusters,
        study=setup.study,
    )
    result.save(folder.path)
    return result


def probe_calibration(
    setup: Setup, folder: ProbeFolder, baseline: ProbeFolder | None
) -> CalibrationResult:
    """Calibration, from the observations and the answers that were read."""
    result = calibration.measure(
        folder.observation,
        baseline.observation if baseline else None,
        tokens=_tokens(setup, folder, baseline),
        refusals=folder.refusals,
        baseline_refusals=baseline.refusals if baseline else None,
        options=folder.questions,
        baseline_options=baseline.questions if baseline else None,
        clusters=setup.clusters,
        study=setup.study,
    )
    result.save(folder.path)
    return result


def probe_direction(
    checkpoint: Checkpoint,
    setup: Setup,
    folder: ProbeFolder,
    baseline: ProbeFolder | None,
    progress: Progress = silent,
) -> RefusalDirectionResult:
    """The refusal direction: selected on a baseline, compared at that place on other cells."""
    cell = folder.observation
    tokens = _tokens(setup, folder, baseline)
    ids = tokens.ids if tokens else None
    scores = None
    if baseline is None and ids and not setup.study and setup.place is None:
        scores = refusal_direction.score_candidates(
            checkpoint,
            fit_directions(cell, refusal_ids=ids),
            setup.prompts["select/harmful"],
            setup.prompts["select/harmless"],
            ids,
            partial=folder.partial,
            progress=progress,
        )
        folder.add_tokens("interventional, selection", scores.forward_tokens)
    result = refusal_direction.measure(
        cell,
        RefusalDirection.load(baseline.path) if baseline else None,
        shared=cell.shared_with(baseline.observation) if baseline else None,
        refusal_ids=ids,
        place=setup.place,
        scores=scores,
        twins=setup.twins,
        clusters=setup.clusters,
        study=setup.study,
    )
    if setup.causal and not setup.study and result.direction.norm > 0:
        with counting(checkpoint) as count:
            check = refusal_direction.causal_check(
                checkpoint,
                result.direction,
                *(setup.prompts[name] for name in EVALUATE),
                clusters=setup.clusters,
                instrument=setup.instrument,
                max_new_tokens=setup.max_new_tokens,
                seed=setup.seed,
                progress=progress,
            )
        folder.add_tokens("interventional, steering", count.tokens)
        before = RefusalDirectionResult.load(baseline.path) if baseline else None
        result = result.with_causal(check, before)
    result.save(folder.path)
    folder.partial.discard()
    return result


def probe_neurons(
    checkpoint: Checkpoint,
    setup: Setup,
    folder: ProbeFolder,
    baseline: ProbeFolder | None,
    progress: Progress = silent,
) -> SafetyNeuronsResult:
    """Safety neurons; a baseline leaves its weights for the cells that follow."""
    weights = None
    if baseline is None:
        if not setup.study:
            neuron_weights.save_weights(checkpoint, folder.weights)
    elif baseline.weights.is_dir() and not setup.study:
        weights = neuron_weights.weight_errors(checkpoint, baseline.weights)
    seen = baseline.observation if baseline else None
    result = safety_neurons.measure(
        folder.observation, seen, study=setup.study, weights=weights, seed=setup.seed
    )
    if seen is not None and setup.causal and not setup.study and result.profiles:
        tokens = _tokens(setup, folder, baseline)
        if tokens:
            with counting(checkpoint) as count:
                result = safety_neurons.patch(
                    result,
                    checkpoint,
                    setup.prompts[EVALUATE[0]],
                    seen,
                    tokens.ids,
                    clusters=setup.clusters.get(EVALUATE[0]),
                    seed=setup.seed,
                    partial=folder.partial,
                    progress=progress,
                )
            tokens_in_all = count.tokens + folder.partial.reused_tokens
            folder.add_tokens("interventional, patching", tokens_in_all)
        else:
            why = f"patching: {tokens.problem if tokens else 'no refusal tokens'}"
            result = replace(result, not_measured=(*result.not_measured, why))
    result.save(folder.path)
    folder.partial.discard()
    return result


def _tokens(
    setup: Setup, folder: ProbeFolder, baseline: ProbeFolder | None
) -> RefusalTokens | None:
    """The baseline's, whichever cell is probed; none in study mode, which reads none."""
    return None if setup.study else (baseline or folder).tokens
