"""Ratios of error, safety neurons over others: as published, relative, and scale-matched.

All functions are pure: profiles in, numbers out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mechprobe.probes.matching import (
    DRAWS,
    MIN_MATCHED,
    AdjustedRatio,
    BoolArray,
    FloatArray,
    MatchedSets,
    adjusted_ratio,
    match,
    without_scale,
)
from mechprobe.probes.neuron_errors import Kind, Profile, ratio, stacked, top

CUTOFFS = (0.01, 0.03, 0.05, 0.10)
STUDY_CUTOFF = 0.05
Measure = Literal["error", "weight_error"]


@dataclass(frozen=True, slots=True)
class StudyRatio:
    """The published measure: mean absolute error of safety dimensions over that of all others.

    It is not adjusted for scale: any error that grows with the activation makes it exceed 1.
    """

    layers: tuple[int, ...]
    ratios: tuple[float, ...]
    """One per layer."""
    mean: float
    low: float | None
    """95 % t interval over the layers; None with fewer than two."""
    high: float | None
    p: float | None
    """Two-sided one-sample t against 1 over the layers."""
    n_error: int
    """Harmful prompts the error is measured on."""
    n_fit: int
    """Prompts of each label that chose the dimensions; the former are among them."""


@dataclass(frozen=True, slots=True)
class ErrorRatio:
    """One kind of neuron at one cut-off, in one layer or over all of them."""

    kind: Kind
    cutoff: float
    """Share of the dimensions that count as safety dimensions."""
    layer: int | None
    """None: over all layers."""
    n_safety: int
    n_unmatched: int
    """Safety dimensions with no other of their scale: dropped from the adjusted ratios."""
    ratio: float | None
    """As published, on prompts that did not choose the dimensions; over layers their mean."""
    relative: float | None
    """The same of error over the baseline's root mean square."""
    adjusted: AdjustedRatio | None
    """Against others of the same scale; None below 80 % matched."""
    weight: float | None
    """Ratio of ‖ΔW‖."""
    weight_relative: float | None
    """Ratio of ‖ΔW‖ / ‖W‖."""
    weight_adjusted: AdjustedRatio | None
    """Ratio of ‖ΔW‖ against the same matched others."""


def study_ratio(
    contrasts: Sequence[FloatArray],
    errors: Sequence[FloatArray],
    layers: Sequence[int],
    *,
    n_error: int,
    n_fit: int,
) -> StudyRatio | None:
    """The published measure, layer by layer.

    Args:
        contrasts: |mean(harmful) - mean(harmless)| of the baseline, a (dimension,) per layer.
        errors: Mean absolute difference between cell and baseline, the same.
        layers: Their numbers.
        n_error: Prompts of the errors.
        n_fit: Prompts of each label of the contrasts.

    Returns:
        None where a layer has no error.
    """
    found = [ratio(e, top(c, STUDY_CUTOFF)) for c, e in zip(contrasts, errors, strict=True)]
    ratios = tuple(value for value in found if value is not None)
    if not ratios or len(ratios) < len(found):
        return None
    low, high, p = against_one(ratios)
    return StudyRatio(tuple(layers), ratios, float(np.mean(ratios)), low, high, p, n_error, n_fit)


def against_one(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """95 % t interval of the mean and two-sided p against 1; None with fewer than two values.

    Serves the layers of a cell, and the cells of a matrix as in arXiv 2606.10154.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2 or np.ptp(values) == 0:
        return None, None, None
    test = ttest_1samp(values, 1.0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def error_ratios(
    profiles: Sequence[Profile], cutoff: float, *, draws: int = DRAWS, seed: int = 0
) -> tuple[ErrorRatio, ...]:
    """One kind of neuron at one cut-off: over all layers, then each layer.

    Args:
        profiles: Of one kind, in order of layers.
        cutoff: Share of safety dimensions.
        draws: Of the permutation test.
        seed: Of the draws.
    """
    groups: list[Sequence[Profile]] = [profiles]
    if len(profiles) > 1:
        groups += [[each] for each in profiles]
    rows = []
    for group in groups:
        sets = matched_over_layers(group, cutoff)
        safety = [each.safety(cutoff) for each in group]
        weighed = [each for each in group if each.weight_error is not None]
        rows.append(
            ErrorRatio(
                kind=group[0].kind,
                cutoff=cutoff,
                layer=None if group is profiles else group[0].layer,
                n_safety=len(sets.safety) + len(sets.unmatched),
                n_unmatched=len(sets.unmatched),
                ratio=_mean(ratio(p.error, s) for p, s in zip(group, safety, strict=True)),
                relative=_mean(
                    ratio(_over(p.error, p.rms), s) for p, s in zip(group, safety, strict=True)
                ),
                adjusted=scale_matched(group, cutoff, draws=draws, seed=seed),
                weight=_mean(
                    ratio(p.weight_error, s)
                    for p, s in zip(group, safety, strict=True)
                    if p.weight_error is not None
                ),
                weight_relative=_mean(
                    ratio(_over(p.weight_error, p.weight_norm), s)
                    for p, s in zip(group, safety, strict=True)
                    if p.weight_error is not None and p.weight_norm is not None
                ),
                weight_adjusted=scale_matched(
                    weighed, cutoff, measure="weight_error", draws=draws, seed=seed
                )
                if weighed
                else None,
            )
        )
    return tuple(rows)


def scale_matched(
    profiles: Sequence[Profile],
    cutoff: float,
    *,
    measure: Measure = "error",
    draws: int = DRAWS,
    seed: int = 0,
) -> AdjustedRatio | None:
    """The ratio against others of the same scale, over the given layers together.

    Returns:
        None where fewer than 80 % of the safety dimensions find a match, or nothing has error.
    """
    sets = matched_over_layers(profiles, cutoff, measure)
    if sets.share < MIN_MATCHED:
        return None
    residual, weights = _values(profiles, cutoff, measure)
    return adjusted_ratio(residual, weights, sets, draws=draws, seed=seed)


def matched_over_layers(
    profiles: Sequence[Profile], cutoff: float, measure: Measure = "error"
) -> MatchedSets:
    """The matched sets behind `scale_matched`.

    A residual dimension is the same one at every layer: it is matched once, by its mean log-RMS,
    with dimensions that are safety dimensions nowhere. MLP neurons are matched layer by layer and
    numbered on through the layers.
    """
    parts, start = [], 0
    for group in _units(profiles):
        usable = np.all([_usable(each, measure) for each in group], axis=0)
        scale = np.where(usable, np.mean([each.scale for each in group], axis=0), np.nan)
        sets = match(scale, np.any([each.safety(cutoff) for each in group], axis=0))
        parts.append(_shift(sets, start))
        start += len(scale)
    return MatchedSets(
        np.concatenate([part.safety for part in parts]),
        np.concatenate([part.controls for part in parts]),
        np.concatenate([part.unmatched for part in parts]),
    )


def _values(
    profiles: Sequence[Profile], cutoff: float, measure: Measure
) -> tuple[FloatArray, FloatArray]:
    """What of the log error scale does not explain, and who is a safety dimension where."""
    residuals, weights = [], []
    for group in _units(profiles):
        sets = matched_over_layers(group, cutoff, measure)
        with np.errstate(divide="ignore"):
            log_error = np.log(stacked(group, measure))
        again, scale = stacked(group, "scale_again"), stacked(group, "scale")
        if len(sets.safety):
            log_error = without_scale(log_error, again, scale, sets)
        residuals.append(log_error)
        weights.append(np.stack([each.safety(cutoff) for each in group], axis=1))
    return np.concatenate(residuals), np.concatenate(weights).astype(np.float64)


def _units(profiles: Sequence[Profile]) -> list[Sequence[Profile]]:
    """Profiles whose dimension d is one and the same: all layers of the stream, or one MLP."""
    if profiles[0].kind == "residual":
        return [profiles]
    return [[each] for each in profiles]


def _usable(profile: Profile, measure: Measure) -> BoolArray:
    """Without an error there is no logarithm of it: a dead or an unquantized neuron."""
    error = getattr(profile, measure)
    found: BoolArray = np.isfinite(profile.scale_again) & (error > 0)
    return found


def _shift(sets: MatchedSets, by: int) -> MatchedSets:
    controls = np.where(sets.controls >= 0, sets.controls + by, -1)
    return MatchedSets(sets.safety + by, controls, sets.unmatched + by)


def _over(error: FloatArray, size: FloatArray) -> FloatArray:
    """Relative error; a dimension of size zero has none."""
    return np.divide(error, size, out=np.zeros_like(error), where=size > 0)


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    kept = [value for value in found if value is not None]
    return float(np.mean(kept)) if kept and len(kept) == len(found) else None
