"""Paired outcomes of clustered prompts, drawn from a known law, many rows at once."""

import numpy as np
import pandas as pd


def layout(name, n=220):
    """Codes of the clusters: single prompts, pairs, fours, or the study's singles and wrappers."""
    if name == "study":  # AdvBench alone, behaviours with three wrappers
        singles = round(n * 100 / 220)
        return np.r_[np.arange(singles), singles + np.repeat(np.arange((n - singles) // 4), 4)]
    size = {"single": 1, "pairs": 2, "fours": 4}[name]
    return np.repeat(np.arange(n // size), size)


def uniforms(rng, rows, codes, rho):
    """Shape (rows, n); those of one cluster are the same number with chance rho."""
    shared = rng.random((rows, codes.max() + 1))
    whole = rng.random(shared.shape) < rho
    return np.where(whole[:, codes], shared[:, codes], rng.random((rows, len(codes))))


def changes(rng, rows, codes, rho, lost, gained):
    """-1 with chance `lost`, 1 with chance `gained`, else 0; shape (rows, n)."""
    u = uniforms(rng, rows, codes, rho)
    return np.where(u < lost, -1.0, np.where(u > 1 - gained, 1.0, 0.0))


def normals(rng, rows, codes, rho):
    """Standard normal, with this correlation within clusters; shape (rows, n)."""
    shared = rng.standard_normal((rows, codes.max() + 1))[:, codes]
    return np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((rows, len(codes)))


def outcomes(change, codes):
    """A frame of one cell and its baseline for each row of changes, each a model of its own."""
    rows, n = change.shape
    yes_or_no = np.isin(change, (-1, 0, 1)).all()
    before = np.where(change > 0, 0.0, 1.0) if yes_or_no else np.where(change > 0, 0.0, -change)
    cell = np.tile(np.repeat(["b@t", "q@t"], n), rows)
    return pd.DataFrame(
        {
            "model": np.repeat(np.arange(rows), 2 * n).astype(str),
            "cell": cell,
            "measure": "refusal",
            "instrument": "hard",
            "baseline": np.where(cell == "b@t", "", "b@t"),
            "prompt": np.tile(np.arange(n), 2 * rows).astype(str),
            "cluster": np.tile(codes, 2 * rows).astype(str),
            "value": np.stack([before, before + change], axis=1).ravel(),
        }
    )
