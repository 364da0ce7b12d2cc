"""Paired outcomes of clustered prompts, drawn from a known law, many rows at once."""

import numpy as np
import pandas as pd


def layout(name, n=220):
    """Codes of the clusters: single, pairs, fours, tens, sizes from 1 to 20, or the study's."""
    if name == "study":  # AdvBench alone, behaviours with three wrappers
        singles = round(n * 100 / 220)
        return np.r_[np.arange(singles), singles + np.repeat(np.arange((n - singles) // 4), 4)]
    if name == "unequal":
        many = {20: max(1, round(3 * n / 220)), 5: round(12 * n / 220), 2: round(20 * n / 220)}
        sizes = [size for size, times in many.items() for _ in range(times)]
        sizes += [1] * (n - sum(sizes))
        return np.repeat(np.arange(len(sizes)), sizes)
    size = {"single": 1, "pairs": 2, "fours": 4, "tens": 10}[name]
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


def by_size(rng, rows, codes, share, fall):
    """The largest clusters fall as a whole with the chance `share`, the others rise one by one.

    So often that `fall` is what all lose on average; shape (rows, n).
    """
    size = np.bincount(codes)[codes]
    large = size == size.max()
    gained = (share * large.sum() - fall * len(codes)) / max((~large).sum(), 1)
    lost = (rng.random((rows, codes.max() + 1)) < share)[:, codes]
    return np.where(large, -1.0 * lost, 1.0 * (rng.random(lost.shape) < gained))


def normals(rng, rows, codes, rho):
    """Standard normal, with this correlation within clusters; shape (rows, n)."""
    shared = rng.standard_normal((rows, codes.max() + 1))[:, codes]
    return np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((rows, len(codes)))


def score_falls(rng, rows, codes, rho, shape):
    """Changes of scores, -0.03 on average, alike within clusters by rho; shape (rows, n)."""

    def alike(draw):
        whole = rng.random((rows, codes.max() + 1)) < rho
        return np.where(whole[:, codes], draw(whole.shape)[:, codes], draw((rows, len(codes))))

    def mixed(size):
        far = -0.5 * (rng.random(size) < 0.06)
        return far + (rng.random(size) < 0.6) * rng.normal(0, 0.01, size)

    draws = {
        "mixed": mixed,
        "exponential": lambda size: -rng.exponential(0.03, size),
        "normal": lambda size: rng.normal(-0.03, 0.1, size),
        "rare": lambda size: -rng.choice([0.2, 0.4], size) * (rng.random(size) < 0.1),
    }
    return np.clip(alike(draws[shape]), -1, 1)


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
