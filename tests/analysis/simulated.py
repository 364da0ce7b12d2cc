"""Factorials drawn from a known law, so that what a test should find is known too."""

import numpy as np
import pandas as pd
from scipy.special import expit


def bridge(rng, n, phi):
    """Prompt effects whose logistic mixture is logistic again: the marginal log-odds are linear.

    Wang and Louis 2003: with a conditional log-odds of eta / phi + u the marginal one is eta.
    """
    u = rng.uniform(size=n)
    return np.log(np.sin(phi * np.pi * u) / np.sin(phi * np.pi * (1 - u))) / phi


def tallies(rng, *, prompts, temperatures, k, a, b, c, d, phi=0.6, family=1):
    """The tallies of a cell and its baseline; marginal log-odds a + b q + c T + d q T.

    In place of c T, `c` may say by temperature what it does to both.

    A prompt of the baseline and of the cell share their effect, and so do the `family` prompts of a
    cluster (or those that it gives one number). At temperature 0 all samples of a prompt are one
    answer.
    """
    codes = np.arange(prompts) // family if isinstance(family, int) else family
    effect = bridge(rng, codes.max() + 1, phi)[codes]
    found = []
    for q in (1.0, 0.0):
        rows = []
        for t in temperatures:
            both = c[t] if isinstance(c, dict) else c * t
            chance = expit((a + b * q + both + d * q * t) / phi + effect)
            comply = k * rng.binomial(1, chance) if t == 0 else rng.binomial(k, chance)
            rows.append(
                pd.DataFrame(
                    {
                        "temperature": float(t),
                        "prompt": np.arange(prompts).astype(str),
                        "cluster": codes.astype(str),
                        "comply": comply,
                        "decided": k,
                    }
                )
            )
        found.append(pd.concat(rows, ignore_index=True))
    return found
