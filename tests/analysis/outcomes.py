"""Outcomes of a small matrix, drawn so that a test knows what is in them."""

import numpy as np
import pandas as pd


def outcomes_of(values, *, measure="refusal", instrument="hard", model="m", clusters=None):
    """One line per cell and prompt; the first cell is the baseline of the others.

    `values` maps a cell to its values, NaN where it could not be read.
    """
    names = list(values)
    frames = []
    for cell in names:
        n = len(values[cell])
        prompts = [f"p{i:04d}" for i in range(n)]
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "family": "f",
                    "cell": cell,
                    "precision": cell.partition("@")[0],
                    "engine": cell.partition("@")[2],
                    "baseline": "" if cell == names[0] else names[0],
                    "reference": False,
                    "measure": measure,
                    "instrument": instrument,
                    "prompt": prompts,
                    "cluster": prompts if clusters is None else list(clusters),
                    "value": np.asarray(values[cell], float),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def matrix_of(outcomes):
    """The matrix that such outcomes belong to."""
    who = ["model", "family", "cell", "precision", "engine", "baseline"]
    return outcomes[who].drop_duplicates(["model", "cell"]).reset_index(drop=True)


def answered(n, ones):
    """`ones` prompts with 1 and the rest with 0."""
    return [1.0] * ones + [0.0] * (n - ones)


def simulated(rng, rows, *, n, keep, churn=0.0, fall=None, measure="refusal"):
    """Many cells of one model: prompts flip with chance `churn`; row i then loses `fall[i]`."""
    base = (rng.random(n) < keep).astype(float)
    flips = rng.random((rows, n)) < churn
    cells = np.where(flips, 1 - base, base)
    if fall is not None:
        cells = np.where(rng.random((rows, n)) < np.reshape(fall, (-1, 1)), 0.0, cells)
    values = {"FP16@t": base} | {f"q{i}@t": cells[i] for i in range(rows)}
    return outcomes_of(values, measure=measure)
