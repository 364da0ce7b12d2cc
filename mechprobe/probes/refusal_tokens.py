"""Refusal tokens: the first tokens by which a model refuses, and the log-odds they carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

EPSILON = 1e-8
"""Of Arditi et al. 2024, so that a probability of 0 or 1 stays finite."""


def refusal_log_odds(logits: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    """log(p + ε) − log(1 − p + ε) in nats, p being the total probability of the refusal tokens.

    Args:
        logits: Of the first generated position, shape (n, vocabulary); normalised here.
        ids: The refusal tokens, each once.

    Returns:
        Shape (n,), float64.

    Source: the refusal score of Arditi et al. 2024 (arXiv 2406.11717).
    """
    p = softmax(np.asarray(logits, np.float64), axis=-1)[:, list(ids)].sum(axis=-1)
    odds: NDArray[np.float64] = np.log(p + EPSILON) - np.log(1 - p + EPSILON)
    return odds
