"""A matrix of any size with the columns of a real one: what `scale.py` gives to the analysis."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mechprobe.analysis.separators import METRICS

LADDER = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
CELLS = tuple(f"{level}@llama.cpp" for level in LADDER)
PACKED = ("FP16@transformers", "AWQ-INT4@transformers", "GPTQ-INT4@transformers")
FAMILIES = ("Llama", "Qwen", "Phi", "Mistral")
PROMPTS, ITEMS = 220, 100
"""Harmful prompts and quality items of a cell, as in arXiv 2606.10154 and the demo."""


def identity(rows: int) -> pd.DataFrame:
    """`rows` rows of models with ten cells each, two of them baselines."""
    keys = (*CELLS, *PACKED)
    models = -(-rows // len(keys))
    frame = pd.DataFrame(
        {
            "model": np.repeat([f"model-{i:05d}" for i in range(models)], len(keys)),
            "family": np.repeat([FAMILIES[i % 4] for i in range(models)], len(keys)),
            "cell": np.tile(keys, models),
        }
    )
    frame["precision"] = frame["cell"].str.partition("@")[0]
    frame["engine"] = frame["cell"].str.partition("@")[2]
    first = {"llama.cpp": CELLS[0], "transformers": PACKED[0]}
    held = frame["engine"].map(first)
    frame["baseline"] = held.where(held != frame["cell"], "")
    return frame.iloc[:rows].reset_index(drop=True)


def _outcomes(
    rows: pd.DataFrame, measure: str, instrument: str, values: np.ndarray
) -> pd.DataFrame:
    prompts = values.shape[1]
    frame = rows.loc[np.repeat(rows.index, prompts), ["model", "family", "cell", "baseline"]]
    names = np.array([f"p{i:04d}" for i in range(prompts)])
    frame["precision"] = np.repeat(rows["precision"].to_numpy(), prompts)
    frame["engine"] = np.repeat(rows["engine"].to_numpy(), prompts)
    frame["reference"] = False
    frame["measure"], frame["instrument"] = measure, instrument
    frame["prompt"] = np.tile(names, len(rows))
    frame["cluster"] = frame["prompt"]
    frame["value"] = values.ravel()
    return frame


def simulate(
    rows: int, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Outcomes, matrix, templates and gaps of `rows` rows; a tenth of them lose refusals."""
    rng = np.random.default_rng(seed)
    who = identity(rows)
    lost = np.where(who["baseline"] == "", 0.0, rng.choice([0.02, 0.3], rows, p=[0.9, 0.1]))
    base = rng.random((rows, PROMPTS)) < 0.9
    refused = base & (rng.random((rows, PROMPTS)) >= lost[:, None])
    second = refused ^ (rng.random((rows, PROMPTS)) < 0.05)
    quality = np.clip(rng.normal(0.8, 0.1, (rows, ITEMS)) - 0.02 * lost[:, None], 0, 1)
    outcomes = pd.concat(
        [
            _outcomes(who, "refusal", "hard", refused.astype(float)),
            _outcomes(who, "refusal", "oracle", second.astype(float)),
            _outcomes(who, "quality", "bertscore", quality),
        ],
        ignore_index=True,
    )
    matrix = who.drop(columns="cell").assign(status="ok", error="", engine_differs=False)
    matrix["harmful_refusal_rate"] = refused.mean(axis=1)
    noise = rng.normal(size=(rows, len(METRICS)))
    metrics = pd.DataFrame(noise + lost[:, None], columns=list(METRICS))
    templates = who[["model", "family", "cell", "baseline"]].assign(
        n_prompts=PROMPTS,
        refusals=refused.sum(axis=1),
        dominant_prefix_share=rng.random(rows) * (1 - lost),
        unique_prefix_rate=rng.random(rows) * 0.2 + lost,
        prefix_entropy_norm=rng.random(rows),
        mean_tokens_refusal=20 + rng.random(rows) * 5,
    )
    gaps = who.assign(gap="kernel", against=who["cell"] + " dense", n=64, mean_kl=1e-6, max_kl=1e-5)
    gaps = gaps[["model", "gap", "cell", "against", "n", "mean_kl", "max_kl"]].assign(
        top1_agreement=1.0, prompts="simulated"
    )
    return outcomes, pd.concat([matrix, metrics], axis=1), templates, gaps
