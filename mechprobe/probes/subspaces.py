"""Refusal subspaces: more than one direction, compared by principal angles.

The k directions along which harmful requests differ most from their harmless twins are the top
right singular vectors of the twin differences, uncentred: what all pairs share comes first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

DIMENSIONS = 4
"""k where the caller names none."""


def refusal_subspace(differences: FloatArray, k: int = DIMENSIONS) -> FloatArray | None:
    """Orthonormal rows that span the top-k right singular vectors.

    Args:
        differences: Harmful minus harmless twin, shape (pair, width).
        k: Dimensions, at least 1.

    Returns:
        Shape (k, width), strongest first; None where the differences do not span k dimensions.
    """
    rows = np.asarray(differences, np.float64)
    if min(rows.shape) < k:
        return None
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    rank = int((values > values[0] * max(rows.shape) * np.finfo(np.float64).eps).sum())
    return right[:k] if rank >= k else None


def principal_angles(a: FloatArray, b: FloatArray) -> tuple[float, ...]:
    """Angles in degrees between two subspaces, smallest first.

    Args:
        a: Orthonormal rows, shape (k, width).
        b: Orthonormal rows, shape (k, width).

    Source: Knyazev and Argentati 2002, through `scipy.linalg.subspace_angles`.
    """
    from scipy.linalg import subspace_angles

    return tuple(float(angle) for angle in np.degrees(np.sort(subspace_angles(a.T, b.T))))


def split_half_angles(
    differences: FloatArray, k: int = DIMENSIONS, *, rounds: int = 20, seed: int = 0
) -> tuple[float, ...] | None:
    """Noise floor of principal angles: between subspaces of two disjoint halves of the twins.

    Angles between two models that are no larger than these say nothing about the models. Halves
    hold half the pairs, so the floor is rather too high than too low.

    Returns:
        The mean angle in degrees, smallest first; None with too few pairs for k dimensions.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rounds):
        order = rng.permutation(len(differences))
        halves = [refusal_subspace(differences[order[i::2]], k) for i in (0, 1)]
        if halves[0] is None or halves[1] is None:
            return None
        found.append(principal_angles(halves[0], halves[1]))
    return tuple(float(angle) for angle in np.mean(found, axis=0))
