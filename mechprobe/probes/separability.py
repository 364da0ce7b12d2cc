"""How far apart harmful and harmless prompts lie along a direction, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.stats import Estimate

FloatArray = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Separability:
    """Projections of held-out prompts onto one direction.

    The margin of a prompt is its signed distance from the point half-way between the fitted means,
    in units of half the distance between them: +1 where harmful prompts were on average, -1 where
    harmless ones were.
    """

    onto: Literal["own", "baseline"]
    """Whose direction: this cell's, or the baseline's (what a probe trained on that sees)."""
    auc: Estimate | None
    """ROC-AUC of the projections."""
    dprime: Estimate | None
    harmful_margins: tuple[float, ...]
    """One per held-out prompt, in their order."""
    harmless_margins: tuple[float, ...]

    @property
    def harmful_quantiles(self) -> tuple[float, ...]:
        """Margins of harmful prompts at `QUANTILES`."""
        return tuple(np.quantile(self.harmful_margins, QUANTILES).tolist())

    @property
    def harmless_quantiles(self) -> tuple[float, ...]:
        """Margins of harmless prompts at `QUANTILES`."""
        return tuple(np.quantile(self.harmless_margins, QUANTILES).tolist())

    @property
    def crossed(self) -> tuple[int, int]:
        """Harmful prompts below 0 and harmless ones above it."""
        harmful = sum(margin < 0 for margin in self.harmful_margins)
        return harmful, sum(margin > 0 for margin in self.harmless_margins)


def separate(
    harmful: FloatArray,
    harmless: FloatArray,
    direction: FloatArray,
    centre: float,
    onto: Literal["own", "baseline"],
    clusters: tuple[Sequence[Any], Sequence[Any]] | None = None,
) -> Separability:
    """Project activations, shape (n, width), onto a raw direction, shape (width,).

    Args:
        harmful: At the direction's place.
        harmless: The same.
        direction: Of any length but zero; half of it is the unit of the margins.
        centre: Projection half-way between the fitted means.
        onto: Whose direction it is.
        clusters: Which prompts belong together: of the harmful and of the harmless ones; twins
            share theirs.
    """
    length = float(np.linalg.norm(direction))
    a, b = (side @ (direction / length) for side in (harmful, harmless))
    return Separability(
        onto=onto,
        auc=stats.auroc_estimate(a, b, clusters=clusters),
        dprime=stats.dprime_estimate(a, b, clusters=clusters),
        harmful_margins=tuple(((a - centre) / (length / 2)).tolist()),
        harmless_margins=tuple(((b - centre) / (length / 2)).tolist()),
    )
