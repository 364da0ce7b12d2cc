"""Quality against safety over rows of several models: one pair of metrics, every way it is asked.

Rows of a model are repeated measures. So beside the pooled correlation stand the correlation within
each model, the repeated-measures correlation, which asks for one slope common to all models, and
the slope of a mixed-effects model with an intercept of its own for each.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mechprobe.analysis.grouped import (
    LEAST,
    FloatArray,
    Groups,
    correlation,
    correlations_within,
    correlations_without,
    ranks_within,
)

MIXED_MODELS = (3, 30)
"""Of how many models a mixed-effects slope is fitted; with more it tells what the
repeated-measures slope does, at a cost that grows with them."""
_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Within:
    """The rows of one model; a correlation is None where there are too few or one side is flat."""

    n: int
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True)
class Repeated:
    """Repeated-measures correlation (Bakdash and Marusich 2017)."""

    r: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    df: int | None = None
    """Rows minus models minus 1, over models with two rows at least."""
    slope: float | None = None
    """Safety per unit of quality, common to all models."""
    not_measured: str | None = None


@dataclass(frozen=True, slots=True)
class Mixed:
    """Slope of safety on quality with a random intercept per model, by REML."""

    slope: float | None = None
    low: float | None = None
    """Wald's 95 % interval; with few models it is too narrow."""
    high: float | None = None
    p: float | None = None
    converged: bool | None = None
    boundary: bool | None = None
    """Whether the variance between models is 0, so that this is ordinary regression."""
    not_measured: str | None = None


@dataclass(frozen=True, slots=True)
class Coupling:
    """One quality metric against one safety metric."""

    n: int
    models: int
    pearson: float | None
    spearman: float | None
    within: dict[str, Within]
    positive: int
    """Models whose own Pearson r is above 0."""
    negative: int
    splits: bool | None
    """Whether within-model correlations take both signs; None with fewer than two of them."""
    splits_without_any_model: bool | None
    """Whether they still do, whichever model is left out."""
    splits_without_precision: dict[str, bool | None]
    """Whether they do without the rows of one precision."""
    without_model: dict[str, float | None]
    """Pooled Pearson r without one model's rows."""
    without_precision: dict[str, float | None]
    sign_holds: bool | None
    """Whether the pooled r keeps its sign, whichever model or precision is left out."""
    repeated: Repeated
    mixed: Mixed

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def couple(x: FloatArray, y: FloatArray, models: Groups, precisions: Groups) -> Coupling:
    """Ask of one pair of metrics all there is.

    Args:
        x: Quality, shape (n,), finite.
        y: Safety of the same rows.
        models: The model of each row.
        precisions: The precision of each row.
    """
    from scipy.stats import rankdata

    within = correlations_within(x, y, models)
    ranked = correlations_within(ranks_within(x, models), ranks_within(y, models), models)
    pooled = correlation(x, y)
    without = [correlations_without(x, y, groups) for groups in (models, precisions)]
    positive, negative = _signs(within)
    known = positive + negative >= 2
    left = np.concatenate([[pooled], *without])
    signs = np.sign(left[np.isfinite(left)])
    return Coupling(
        n=len(x),
        models=len(models.names),
        pearson=_known(pooled),
        spearman=_known(correlation(rankdata(x), rankdata(y))) if len(x) else None,
        within={
            str(name): Within(int(n), _known(r), _known(rho))
            for name, n, r, rho in zip(models.names, models.sizes, within, ranked, strict=True)
        },
        positive=positive,
        negative=negative,
        splits=positive > 0 and negative > 0 if known else None,
        splits_without_any_model=min(positive, negative) > 1 if known else None,
        splits_without_precision={
            str(name): _splits(x, y, models, precisions.codes != code)
            for code, name in enumerate(precisions.names)
        },
        without_model=_named(models, without[0]),
        without_precision=_named(precisions, without[1]),
        sign_holds=bool((signs == signs[0]).all()) if np.isfinite(pooled) else None,
        repeated=repeated_measures(x, y, models),
        mixed=mixed_effects(x, y, models),
    )


def repeated_measures(x: FloatArray, y: FloatArray, models: Groups) -> Repeated:
    """Correlation of what is left when each model's own mean is taken out of both sides.

    This is the analysis of covariance with a common slope: r² = SS(x) / (SS(x) + SS(error)), with
    the sign of the slope. Interval on Fisher's z scale with the error's degrees of freedom.

    Source: Bakdash and Marusich 2017, Frontiers in Psychology 8:456.
    """
    from scipy.stats import t

    inside = (models.sizes > 1)[models.codes]
    groups = Groups.of(models.codes[inside])
    df = int(inside.sum()) - len(groups.names) - 1
    if df < 2:
        return Repeated(not_measured=f"{int(inside.sum())} rows of {len(groups.names)} models")
    a, b = groups.centred(x[inside]), groups.centred(y[inside])
    flat = [_flat(part, whole[inside]) for part, whole in ((a, x), (b, y))]
    if any(flat):
        side = "quality" if flat[0] else "safety"
        return Repeated(not_measured=f"{side} is the same in all rows of each model")
    r = float(np.clip(correlation(a, b), -1.0, 1.0))
    low = high = None
    if abs(r) < 1:
        middle, half = np.arctanh(r), _Z / np.sqrt(df - 1)
        low, high = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    with np.errstate(divide="ignore"):
        p = float(2 * t.sf(np.sqrt(df * r**2 / (1 - r**2)), df)) if abs(r) < 1 else 0.0
    return Repeated(r, low, high, p, df, float(a @ b / (a @ a)))


def mixed_effects(x: FloatArray, y: FloatArray, models: Groups) -> Mixed:
    """Slope of y on x with a random intercept per model; statsmodels' MixedLM, REML.

    Both sides are standardised for the fit. What did not converge has no number.
    """
    k = len(models.names)
    if not MIXED_MODELS[0] <= k <= MIXED_MODELS[1]:
        return Mixed(not_measured=f"{k} models; {MIXED_MODELS[0]} to {MIXED_MODELS[1]} are fitted")
    if len(x) < k + LEAST:
        return Mixed(not_measured=f"{len(x)} rows of {k} models")
    if _flat(x - x.mean(), x) or _flat(y - y.mean(), y):
        return Mixed(not_measured="one side is the same in every row")
    from statsmodels.regression.mixed_linear_model import MixedLM

    sx, sy = float(x.std()), float(y.std())
    design = np.column_stack([np.ones(len(x)), (x - x.mean()) / sx])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is told by the fields
        try:
            found = MixedLM((y - y.mean()) / sy, design, groups=models.codes).fit(
                reml=True, method=["bfgs", "powell"]
            )
        except np.linalg.LinAlgError:
            return Mixed(converged=False, not_measured="the fit met a singular matrix")
    slope, error = float(found.fe_params[1]), float(found.bse_fe[1])
    if not found.converged or not np.isfinite(error):
        return Mixed(converged=bool(found.converged), not_measured="the fit did not converge")
    unit = sy / sx
    return Mixed(
        slope * unit,
        (slope - _Z * error) * unit,
        (slope + _Z * error) * unit,
        float(found.pvalues[1]),
        True,
        bool(np.asarray(found.cov_re)[0, 0] < 1e-6),
    )


def _flat(centred: FloatArray, values: FloatArray) -> bool:
    """Whether what is left of values differs from 0 by rounding alone."""
    return bool(np.abs(centred).max() <= 1e-9 * np.abs(values).max())


def _signs(within: FloatArray) -> tuple[int, int]:
    """How many are above and below 0; a correlation of 1e-12 is none."""
    return int((within > 1e-12).sum()), int((within < -1e-12).sum())


def _splits(
    x: FloatArray, y: FloatArray, models: Groups, kept: np.ndarray[Any, Any]
) -> bool | None:
    left = Groups(models.names, models.codes[kept])
    positive, negative = _signs(correlations_within(x[kept], y[kept], left))
    return positive > 0 and negative > 0 if positive + negative >= 2 else None


def _named(groups: Groups, values: FloatArray) -> dict[str, float | None]:
    return {str(name): _known(value) for name, value in zip(groups.names, values, strict=True)}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
