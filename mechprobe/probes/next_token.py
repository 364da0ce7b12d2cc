"""The next-token distribution after the prompt, as the numbers that two probes read from it.

All in float64: a softmax in bfloat16 rounds small probabilities away and biases the entropy, so
logits are widened before anything is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from mechprobe.activations.plan import LOGITS
from mechprobe.errors import NumericsError, VocabularyError
from mechprobe.probes.observation import Observation

FloatArray = NDArray[np.float64]
ROWS = 8
"""Prompts in memory at once, at up to 2 MB of float64 logits each."""


def as_float64(logits: Any) -> FloatArray:
    """Logits as float64, from an array or from a torch tensor of any type and device."""
    if hasattr(logits, "detach"):  # numpy has no bfloat16
        logits = logits.detach().double().cpu().numpy()
    return np.asarray(logits, np.float64)


def log_probabilities(logits: Any) -> FloatArray:
    """Log-probabilities (nats) over the last axis, float64.

    Raises:
        NumericsError: NaN or +infinity; -infinity is a token that cannot be said.
    """
    x = as_float64(logits)
    if np.isnan(x).any() or np.isposinf(x).any():
        raise NumericsError("NaN or infinity among the logits of the first generated position")
    out: FloatArray = log_softmax(x, axis=-1)
    return out


def entropy_nats(logits: Any) -> FloatArray:
    """Shannon entropy of the next-token distribution in nats, shape (n,).

    Args:
        logits: Shape (n, vocabulary), array or tensor, unnormalised.

    Raises:
        NumericsError: NaN or +infinity.
    """
    log_p = log_probabilities(logits)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * log_p)
    total: FloatArray = terms.sum(axis=-1)
    return np.maximum(-total, 0.0)


def logit_rows(
    cell: Observation, baseline: Observation | None, prompts: str
) -> Iterator[tuple[FloatArray, FloatArray | None]]:
    """Logits of a cell and of its baseline on the same prompts, a few rows at a time.

    Yields:
        Two arrays (rows, vocabulary), float64; the second is None without a baseline.

    Raises:
        ParityError: They saw different token ids.
        VocabularyError: Their vocabularies differ in size.
        NumericsError: NaN or +infinity, naming the cell.
    """
    if baseline is not None:
        cell.require_parity(baseline, prompts)
    n = cell.store(prompts).n_prompts
    for start in range(0, n, ROWS):
        rows = range(start, min(start + ROWS, n))
        mine = _read(cell, prompts, rows)
        other = None if baseline is None else _read(baseline, prompts, rows)
        if other is not None and baseline is not None and other.shape != mine.shape:
            raise VocabularyError(
                f"{cell.facts.source} has {mine.shape[1]} logits and its baseline "
                f"{baseline.facts.source} {other.shape[1]}; they cannot be compared"
            )
        yield mine, other


def _read(observation: Observation, prompts: str, rows: range) -> FloatArray:
    found = observation.read(prompts, LOGITS, rows)[:, 0].astype(np.float64)
    if np.isnan(found).any() or np.isposinf(found).any():
        facts = observation.facts
        raise NumericsError(f"{facts.source} ({facts.precision}): NaN or infinity, {prompts}")
    return found
