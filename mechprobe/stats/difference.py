"""Paired differences by the score: a test and an interval that few changes do not make too sure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechprobe.stats.clusters import IntArray, effective

FloatArray = NDArray[np.float64]
_STEPS = 40
"""Halvings of [-1, 1] in the search for the end of an interval."""


def difference_score(
    lost: ArrayLike, gained: ArrayLike, n: ArrayLike, fall: ArrayLike
) -> FloatArray:
    """Tango's score statistic of paired outcomes at a fall; above 0, more was lost than that.

    The error is that of the likeliest table with this fall, not of the data: few changed prompts,
    all in one direction, make the data's own error too small.

    Args:
        lost: Prompts that went from 1 to 0; for scores, what all that fell lost.
        gained: The opposite.
        n: Prompts.
        fall: As a share, in [-1, 1].

    Source: Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    b, c, m, d = (np.asarray(x, np.float64) for x in (lost, gained, n, fall))
    up = d >= 0
    b, c, d = np.where(up, b, c), np.where(up, c, b), np.abs(d)
    linear = (2 * m - b + c) * d - b - c
    root = np.sqrt(np.maximum(linear**2 + 8 * m * c * d * (1 - d), 0.0))
    other = np.maximum((root - linear) / (4 * m), 0.0)
    variance = np.maximum(m * (2 * other + d * (1 - d)), np.finfo(np.float64).tiny)
    found: FloatArray = np.where(up, 1, -1) * (b - c - m * d) / np.sqrt(variance)
    return found


def difference_interval(
    lost: ArrayLike, gained: ArrayLike, n: ArrayLike, effect: ArrayLike = 1.0
) -> tuple[FloatArray, FloatArray]:
    """95 % interval of a paired difference, gained minus lost, as a share: Tango's.

    Args:
        lost: As in `difference_score`.
        gained: The opposite.
        n: Prompts.
        effect: `design_effect`, by which the squared score is divided.

    Source: Tango 1998; the score over its design effect: Rao and Scott 1992.
    """
    from scipy.stats import norm

    b, c, m, f = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (lost, gained, n, effect))
    )
    reach = norm.ppf(0.975) * np.sqrt(f)
    middle = np.divide(b - c, m, out=np.zeros_like(m), where=m > 0)

    def end(side: int) -> FloatArray:
        inside, outside = middle.copy(), np.full_like(middle, float(side))
        for _ in range(_STEPS):
            at = (inside + outside) / 2
            within = side * difference_score(b, c, m, at) >= -reach
            inside, outside = np.where(within, at, inside), np.where(within, outside, at)
        found: FloatArray = outside
        return found

    with np.errstate(invalid="ignore", divide="ignore"):
        most, least = end(1), end(-1)
    return -most, -least


def change_interval(changes: FloatArray, codes: IntArray) -> tuple[float, float]:
    """`difference_interval` of changes in [-1, 1], shape (n,), over clusters."""
    n, mean = len(changes), float(changes.mean())
    lost, gained = float(np.maximum(-changes, 0).sum()), float(np.maximum(changes, 0).sum())
    within = lost + gained - n * mean**2
    effect = effective(changes, codes, within, by_size=True)
    low, high = difference_interval(lost, gained, n, effect)
    return min(float(low), mean), max(float(high), mean)
