"""Safety neurons: does quantization hit the dimensions that tell harmful from harmless hardest?

*Study mode* (arXiv 2606.10154): the ratio of mean absolute error, safety dimensions over all
others. It exceeds 1 for any error that grows with the activation, because the dimensions with the
largest contrast tend to be large. The *proper* measure compares each safety dimension with others
of its scale on held-out prompts, on residual dimensions and on MLP neurons (arXiv 2406.14144), at
four cut-offs, beside relative error and the error of the neuron's own weights. Whether the neurons
carry the lost refusals is tested by putting the baseline's activations back (`patch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mechprobe.activations.npz import read_npz
from mechprobe.errors import StoreError
from mechprobe.probes.baseline import baseline_warnings
from mechprobe.probes.matching import DRAWS
from mechprobe.probes.neuron_errors import (
    ERRORS,
    FITS,
    KINDS,
    N_ERROR,
    PLAIN,
    SCALES,
    Kind,
    Profile,
    contrast,
    from_arrays,
    mlp_point,
    point_of,
    profile,
    residual_point,
    rows_of_error,
    study_layers,
)
from mechprobe.probes.neuron_patching import Patching, patch_back
from mechprobe.probes.neuron_ratios import (
    CUTOFFS,
    STUDY_CUTOFF,
    ErrorRatio,
    StudyRatio,
    error_ratios,
    study_ratio,
)
from mechprobe.probes.observation import Facts, Need, Observation
from mechprobe.probes.saving import Saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts
    from mechprobe.probes.neuron_weights import WeightError

ARRAYS = "safety_neurons.npz"
NO_PART = "there is no error of quantization, and they take no part in any number"
NOT_STUDY = "MLP neurons, other cut-offs, scale matching: not part of the study mode"
MIN_HELD_OUT = 16
"""Prompts that scale must be measured on: half to match, half to see what is left."""
_RESCALED = ("AWQ", "W4A", "W8A")
"""Labels of checkpoints whose writer may have rescaled neurons before rounding."""


@dataclass(frozen=True, slots=True)
class SafetyNeuronsResult(Saved):
    """How much error a cell's safety neurons take, beside other neurons."""

    NAME: ClassVar[str] = "safety_neurons"
    ELSEWHERE: ClassVar[tuple[str, ...]] = ("profiles",)

    cell: Facts
    baseline: Facts | None
    layers: tuple[int, ...]
    equal_layers: tuple[int, ...]
    """Those that take no part: weights up to there equal the baseline's, or round to them."""
    prompts: Mapping[str, str]
    """Digest of each prompt set's token ids."""
    n_fit: int
    """Prompts of each label that chose the neurons; 0 in study mode, see `study`."""
    n_error: int
    """Harmful prompts that errors are measured on."""
    n_scale: int
    """Held-out harmful prompts that scale is measured on."""
    study: StudyRatio | None
    """Unadjusted for scale, as published."""
    ratios: tuple[ErrorRatio, ...]
    """By kind and cut-off: over all layers, then each layer."""
    patching: tuple[Patching, ...]
    """By kind; empty until `patch` has run."""
    profiles: tuple[Profile, ...]
    """The numbers behind it, dimension by dimension."""
    not_measured: tuple[str, ...]
    """What is missing above, and why."""
    warnings: tuple[str, ...]
    """What makes the numbers mean something else than they seem to."""

    @property
    def is_study(self) -> bool:
        """Whether only the published measure was taken."""
        return NOT_STUDY in self.not_measured

    @property
    def unmet(self) -> tuple[str, ...]:
        """The published ratio, any scale-matched one, and patching where it was tried."""
        if self.baseline is None:
            return ("ratios",)
        if self.equal_layers == self.layers:
            return ()  # nothing differs that could be measured
        overall = [row for row in self.ratios if row.layer is None]
        missing = {
            "study ratio": self.study is None,
            "scale-matched ratio": not self.is_study
            and all(row.adjusted is None for row in overall),
            "patching": not self.patching
            and any(line.startswith("patching") for line in self.not_measured),
        }
        return tuple(name for name, is_missing in missing.items() if is_missing)

    @property
    def drawable(self) -> bool:
        """Whether any layer was measured."""
        return bool(self.profiles or self.study)

    def overall(self, kind: Kind = "residual", cutoff: float = STUDY_CUTOFF) -> ErrorRatio | None:
        """The ratio over all layers."""
        for row in self.ratios:
            if (row.kind, row.cutoff, row.layer) == (kind, cutoff, None):
                return row
        return None

    def of_kind(self, kind: Kind) -> tuple[Profile, ...]:
        """Profiles of one kind, in order of layers."""
        return tuple(each for each in self.profiles if each.kind == kind)

    def _save_elsewhere(self, folder: Path) -> None:
        arrays = {
            f"{each.point}/{name}": value
            for each in self.profiles
            for name, value in each.arrays().items()
        }
        part = folder / f".{ARRAYS}"
        with part.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        part.replace(folder / ARRAYS)

    @classmethod
    def _load_elsewhere(cls, folder: Path) -> dict[str, Any]:
        file = folder / ARRAYS
        saved = read_npz(file, StoreError)
        try:
            return {"profiles": from_arrays(saved)}
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{file}: not the arrays of a {cls.NAME} result ({error})") from error

    def __rich__(self) -> Table:
        """A table for people."""
        from mechprobe.probes.safety_neurons_view import table

        return table(self)

    def plot(self) -> Figure:
        """Error against scale, the ratios, and what patching returned."""
        from mechprobe.probes.safety_neurons_view import figure

        return figure(self)


def needs(
    n_layers: int, post_instruction: int = 1, *, study: bool = False, neurons: bool = True
) -> tuple[Need, ...]:
    """What the probe reads.

    Args:
        n_layers: Blocks of the model.
        post_instruction: `EncodedPrompts.post_instruction`; patching puts these positions back.
        study: Only what the published measure needs.
        neurons: Whether the model has `mlp.hook_post` (a mixture of experts has not).
    """
    layers = study_layers(n_layers)
    stream = tuple(residual_point(layer) for layer in layers)
    if study:
        return Need(ERRORS, stream), Need(PLAIN, stream)
    points = stream + (tuple(mlp_point(layer) for layer in layers) if neurons else ())
    return (
        *(Need(name, points) for name in (*FITS, SCALES)),
        Need(ERRORS, points, tuple(range(-post_instruction, 0)), logits=True),
        Need(PLAIN, stream),
    )


def measure(
    cell: Observation,
    baseline: Observation | None,
    *,
    study: bool = False,
    weights: Mapping[str, WeightError] | None = None,
    cutoffs: Sequence[float] = CUTOFFS,
    draws: int = DRAWS,
    seed: int = 0,
) -> SafetyNeuronsResult:
    """Compare the error of safety neurons with that of others.

    Args:
        cell: Observed with `needs(...)`.
        baseline: Observed on the same token ids; safety neurons are chosen on it.
        study: Only the published measure.
        weights: From `neuron_weights.weight_errors`; needed for the MLP neurons of a checkpoint
            that AWQ rescaled.
        cutoffs: Shares of the dimensions that count as safety dimensions.
        draws: Of the permutation test.
        seed: Of the draws.

    Raises:
        ParityError: The two saw different token ids, or are not of one model.
    """
    layers = study_layers(cell.facts.n_layers)
    names = (ERRORS, PLAIN) if study else (*FITS, SCALES, ERRORS, PLAIN)
    empty = SafetyNeuronsResult(
        cell.facts, None, layers, (), {name: cell.digest(name) for name in names},
        0, 0, 0, None, (), (), (), (), (),
    )  # fmt: skip
    if baseline is None:
        return replace(empty, not_measured=("all: no baseline was given, so there is no error",))
    for name in names:
        cell.require_parity(baseline, name)
    missing: list[str] = []
    shared = cell.shared_with(baseline)
    equal = tuple(layer for layer in layers if shared is not None and shared.reads_shared(layer))
    if shared is not None and equal:
        missing.append(f"layers {', '.join(map(str, equal))}: {shared.said(equal)}; {NO_PART}")
    layers = tuple(layer for layer in layers if layer not in equal)
    published = _study(cell, baseline, layers)
    if published is None and layers:
        missing.append("study ratio: no error at some layer")
    if len(empty.layers) < 5:
        missing.append(f"five layers: {cell.facts.n_layers} blocks give only {len(empty.layers)}")
    found = replace(
        empty,
        baseline=baseline.facts,
        equal_layers=equal,
        study=published,
        warnings=baseline_warnings(baseline.facts.precision),
    )
    if study:
        missing.append(NOT_STUDY)
        return replace(found, not_measured=tuple(missing))
    n = baseline.store(ERRORS).n_prompts
    n_error = len(rows_of_error(n))
    held_out = n - n_error + baseline.store(SCALES).n_prompts
    profiles = [
        profile(
            cell,
            baseline,
            kind,
            layer,
            (weights or {}).get(point_of(kind, layer)),
            own_differs=shared is None or shared.differs(layer),
        )
        for kind in KINDS
        if _has(cell, baseline, kind, layers, weights, missing)
        for layer in layers
    ]
    found = replace(
        found,
        n_fit=baseline.store(FITS[0]).n_prompts,
        n_error=n_error,
        n_scale=held_out,
        profiles=tuple(profiles),
    )
    if weights is None:
        missing.append("weight-space error: the baseline's weights were not compared")
    if not layers:
        return replace(found, not_measured=tuple(missing))
    if held_out < MIN_HELD_OUT:
        missing.append(f"ratios: {held_out} held-out prompts; {MIN_HELD_OUT} give a scale")
        return replace(found, not_measured=tuple(missing))
    rows = [
        row
        for kind in KINDS
        if found.of_kind(kind)
        for cutoff in cutoffs
        for row in error_ratios(found.of_kind(kind), cutoff, draws=draws, seed=seed)
    ]
    missing += [line for kind in KINDS for line in _unmatched(kind, rows)]
    return replace(found, ratios=tuple(rows), not_measured=tuple(missing))


def patch(
    result: SafetyNeuronsResult,
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    baseline: Observation,
    refusal_tokens: Sequence[int],
    **options: Any,
) -> SafetyNeuronsResult:
    """The result with its causal check, for each kind of neuron that was measured.

    Args:
        result: Of `measure`.
        checkpoint: The cell, with a graph.
        prompts: `evaluate/harmful`.
        baseline: As given to `measure`.
        refusal_tokens: Ids, of the baseline.
        options: `cutoff`, `draws`, `batch_size`, `seed` of `patch_back`.
    """
    found, missing = [], list(result.not_measured)
    for kind in KINDS:
        profiles = result.of_kind(kind)
        if not profiles:
            missing.append(f"patching, {kind}: nothing was measured there")
            continue
        part = patch_back(checkpoint, prompts, baseline, profiles, refusal_tokens, **options)
        if part is None:
            missing.append(f"patching, {kind}: one prompt is too few")
            continue
        found.append(part)
        if part.excess is None:
            missing.append(
                f"patching, {kind}, against random: {part.n_unmatched} of {part.n_neurons} safety "
                "neurons have no other of their scale"
            )
        elif part.p is None:
            missing.append(
                f"patching, {kind}, against random: no set of neurons moved the refusal log-odds "
                "beyond rounding"
            )
    return replace(result, patching=tuple(found), not_measured=tuple(missing))


def _study(cell: Observation, baseline: Observation, layers: Sequence[int]) -> StudyRatio | None:
    """As published: dimensions chosen and errors measured on the same prompts."""
    contrasts, errors = [], []
    n = 0
    for layer in layers:
        point = residual_point(layer)
        harmful = baseline.last(ERRORS, point)
        n = len(harmful)
        contrasts.append(contrast(harmful, baseline.last(PLAIN, point)))
        change = np.abs(cell.last(ERRORS, point)[:N_ERROR] - harmful[:N_ERROR])
        errors.append(change.mean(axis=0))
    return study_ratio(contrasts, errors, layers, n_error=min(n, N_ERROR), n_fit=n)


def _has(
    cell: Observation,
    baseline: Observation,
    kind: Kind,
    layers: Sequence[int],
    weights: Mapping[str, WeightError] | None,
    missing: list[str],
) -> bool:
    if kind == "residual":
        return True
    points = [point_of(kind, layer) for layer in layers]
    if any(point not in seen.store(ERRORS) for point in points for seen in (cell, baseline)):
        missing.append("MLP neurons: mlp.hook_post was not observed, or the model has none")
        return False
    if weights is None and cell.facts.precision.startswith(_RESCALED):
        missing.append(
            f"MLP neurons: {cell.facts.precision} may have rescaled them; compare the weights"
        )
        return False
    return True


def _unmatched(kind: Kind, rows: Sequence[ErrorRatio]) -> list[str]:
    lost = [row for row in rows if row.kind == kind and row.layer is None and row.adjusted is None]
    parts = [
        f"{row.n_unmatched} of {row.n_safety} at {row.cutoff:.0%}" if row.ratio else "no error"
        for row in lost
    ]
    why = "safety dimensions without an other of their scale"
    return [f"scale-matched ratio, {kind}: {', '.join(parts)} ({why})"] if lost else []
