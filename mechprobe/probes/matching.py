"""Scale matching: does a set of dimensions take more error than others of the same scale?

Dimensions that tell harmful from harmless best are often those with the largest activations, and
those take more absolute error under any quantizer. So each safety dimension is set beside up to m
others of the same held-out log-RMS, and asked for its excess *within* that matched set.

**The null and its p.** Under the null, error depends on scale alone: given its matched set, which
member is the safety dimension says nothing about their errors. The p permutes exactly that label:
within every set one member is drawn to be the safety dimension, all members alike, independently of
the other sets. The statistic (weighted mean of log error minus the mean of the other members) has
mean 0 over these draws, so `|T|` is two-sided and `(1 + #{|T*| >= |T|}) / (1 + draws)` is exact
for exchangeable members, whatever the shape of the errors. Three things would break that, and are
dealt with:

- A control used twice would tie sets together: matching is without replacement.
- Within the caliper, and within the noise of the scale, the safety dimension still tends to be the
  larger one. What the log error owes to scale is taken off first: a line with up to two bends (an
  error need not be a power of scale), fitted on all members of all sets without knowing which are
  safety dimensions, read at a scale from other prompts.
- One residual dimension is a safety dimension at several layers, and its errors there hang
  together: it is matched once, by its mean log-RMS, and its label moves at all layers together.

Sources: Rosenbaum, Observational Studies, 2002, ch. 3 (permutation within matched sets); Abadie and
Imbens 2011 (bias-corrected matching); Phipson and Smyth 2010 (the 1 + in the p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

CALIPER = 0.1
"""Largest difference in log-RMS (natural logarithm) between a dimension and its match."""
CONTROLS = 4
"""Others per safety dimension, where there are so many."""
MIN_MATCHED = 0.8
"""Share of the safety dimensions that must find a match; below it nothing is claimed."""
DRAWS = 1999
BENDS = 2
"""Most bends of the line that log error follows over log scale; more make its slopes unstable."""
MEMBERS_PER_BEND = 60
"""Members of matched sets that each bend needs."""


@dataclass(frozen=True, slots=True)
class MatchedSets:
    """Each matched safety dimension with its controls; no dimension is in two sets."""

    safety: IntArray
    """Shape (set,)."""
    controls: IntArray
    """Shape (set, m), nearest first; -1 where fewer than m were found."""
    unmatched: IntArray
    """Safety dimensions without an other of their scale, dropped from everything below."""

    @property
    def share(self) -> float:
        """Share of the safety dimensions that found a match; 0 where there are none."""
        total = len(self.safety) + len(self.unmatched)
        return len(self.safety) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class AdjustedRatio:
    """Error of safety dimensions over that of others of the same scale: a geometric mean."""

    ratio: float
    low: float | None
    """95 % t interval over matched sets, on the log scale; None with fewer than two sets."""
    high: float | None
    p: float
    """Two-sided permutation p against a ratio of 1."""


def match(
    scale: FloatArray, safety: BoolArray, *, caliper: float = CALIPER, controls: int = CONTROLS
) -> MatchedSets:
    """Match each safety dimension with its nearest others, without replacement.

    In rounds: each safety dimension takes one control, largest scale first (there others are
    scarce), then each a second one, and so on.

    Args:
        scale: Log-RMS of the baseline activation, shape (dimension,). Dimensions whose scale is
            not finite (dead ones) are nobody's match.
        safety: Which dimensions are safety dimensions, shape (dimension,).
        caliper: Largest difference in scale.
        controls: Most controls of one set.
    """
    finite = np.isfinite(scale)
    wanted = np.flatnonzero(safety)
    live = wanted[finite[wanted]]
    live = live[np.argsort(-scale[live], kind="stable")]
    pool = np.flatnonzero(~safety & finite)
    pool = pool[np.argsort(scale[pool], kind="stable")]
    levels = scale[pool]
    first = np.searchsorted(levels, scale[live] - caliper, side="left")
    last = np.searchsorted(levels, scale[live] + caliper, side="right")
    free = np.ones(len(pool), dtype=bool)
    chosen = np.full((len(live), controls), -1, dtype=np.int64)
    for round_ in range(controls):
        for row, (a, b) in enumerate(zip(first, last, strict=True)):
            if round_ and chosen[row, round_ - 1] < 0:
                continue
            near = np.flatnonzero(free[a:b])
            if len(near):
                best = a + near[np.argmin(np.abs(levels[a:b][near] - scale[live[row]]))]
                free[best] = False
                chosen[row, round_] = pool[best]
    found = chosen[:, 0] >= 0
    return MatchedSets(live[found], chosen[found], np.setdiff1d(wanted, live[found]))


def without_scale(
    log_error: FloatArray, scale: FloatArray, matched_on: FloatArray, sets: MatchedSets
) -> FloatArray:
    """Log error minus what it owes to scale: a bent line fitted on the members of the matched sets.

    `scale` comes from other prompts than the scale that was matched on, which is the instrument of
    the slopes. Thereby noise in neither of them biases the excess: where a safety dimension and its
    control look alike on the first prompts and are not, the second prompts show it. The line bends
    at quantiles of the members' scale, once for 60 of them and twice at most: one slope for all
    scales leaves a bias where error is no power of scale (quantizers clip and round to nothing).

    Args:
        log_error: Shape (dimension, layer).
        scale: Log-RMS on prompts that the matching did not see, the same shape.
        matched_on: Log-RMS that was matched on, layer by layer, the same shape.
        sets: Whose members are fitted; massive dimensions, being in no set, have no pull.

    Returns:
        The same shape; NaN for dimensions that are in no set.
    """
    members = np.concatenate([sets.safety, sets.controls[sets.controls >= 0]])
    bends = min(BENDS, len(members) // MEMBERS_PER_BEND)
    places = np.linspace(0, 1, bends + 2)[1:-1]
    left = np.full(log_error.shape, np.nan)
    for layer in range(log_error.shape[1]):
        again, first, errors = (values[members, layer] for values in (scale, matched_on, log_error))
        knots = np.quantile(first, places)
        x, z = (
            np.column_stack([values, *(np.maximum(values - knot, 0) for knot in knots)])
            for values in (again, first)
        )
        x, z = x - x.mean(axis=0), z - z.mean(axis=0)
        slopes = np.linalg.lstsq(z.T @ x, z.T @ (errors - errors.mean()), rcond=1e-6)[0]
        left[members, layer] = errors - x @ slopes
    return left


def adjusted_ratio(
    residual: FloatArray,
    weights: FloatArray,
    sets: MatchedSets,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> AdjustedRatio:
    """The excess of safety dimensions within their matched sets.

    Args:
        residual: Log error without what it owes to scale, shape (dimension, layer).
        weights: 1 where a dimension is a safety dimension of that layer, else 0; the same shape.
        sets: At least one.
        draws: Random relabellings.
        seed: Of the draws.
    """
    excess = _excess(residual, sets)
    layers = weights[sets.safety]
    scores = np.einsum("sml,sl->sm", excess, layers)
    total = float(layers.sum())
    log_ratio = float(scores[:, 0].sum()) / total
    sizes = 1 + (sets.controls >= 0).sum(axis=1)
    rng = np.random.default_rng(seed)
    picks = (rng.random((draws, len(sizes))) * sizes).astype(np.int64)
    drawn = scores[np.arange(len(sizes)), picks].sum(axis=1) / total
    # rounding must not make a relabelling that changes nothing count as smaller
    least = abs(log_ratio) * (1 - 1e-9)
    p = (1 + int((np.abs(drawn) >= least).sum())) / (1 + draws)
    low, high = _interval(scores[:, 0], layers.sum(axis=1), log_ratio)
    return AdjustedRatio(float(np.exp(log_ratio)), low, high, p)


def draw_controls(sets: MatchedSets, draws: int, seed: int = 0) -> IntArray:
    """Random stand-ins for the safety dimensions, one control of each set: shape (draw, set)."""
    sizes = (sets.controls >= 0).sum(axis=1)
    rng = np.random.default_rng(seed)
    picks = (rng.random((draws, len(sizes))) * sizes).astype(np.int64)
    drawn: IntArray = sets.controls[np.arange(len(sizes)), picks]
    return drawn


def _excess(residual: FloatArray, sets: MatchedSets) -> FloatArray:
    """Each member's value minus the mean of the set's other members: (set, 1 + m, layer)."""
    members = np.concatenate([sets.safety[:, None], sets.controls], axis=1)
    there = (members >= 0)[:, :, None]
    values = np.where(there, residual[members], 0.0)
    count = there.sum(axis=1, keepdims=True)
    others = (values.sum(axis=1, keepdims=True) - values) / (count - 1)
    return np.where(there, values - others, 0.0)


def _interval(
    scores: FloatArray, weights: FloatArray, log_ratio: float
) -> tuple[float | None, float | None]:
    """95 % interval of a weighted mean, sets being the independent units (linearised)."""
    n = len(scores)
    if n < 2:
        return None, None
    from scipy.stats import t

    error = np.sqrt(n / (n - 1) * ((scores - log_ratio * weights) ** 2).sum()) / weights.sum()
    half = float(t.ppf(0.975, n - 1) * error)
    return float(np.exp(log_ratio - half)), float(np.exp(log_ratio + half))
