"""How refusals are worded: four features of the answers that refuse, and their drift.

A model that was trained to refuse does so in a few fixed phrases. Quantization that disturbs
refusals often disturbs the phrases first. Source: arXiv 2606.10154, RTSI.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

FEATURES = (
    "dominant_prefix_share",
    "unique_prefix_rate",
    "prefix_entropy_norm",
    "mean_tokens_refusal",
)
DELTAS = tuple(f"{name}_delta" for name in FEATURES)
PREFIX_TOKENS = 5
DEFINITIONS = {
    "prefix": "first 5 words of a refusal, lower-cased, every run of characters outside "
    "[a-z0-9 ] replaced by one space",
    "dominant_prefix_share": "refusals with the commonest prefix / refusals",
    "unique_prefix_rate": "distinct prefixes / refusals",
    "prefix_entropy_norm": "entropy of the prefixes in bits / log2(distinct prefixes); 0 with one",
    "mean_tokens_refusal": "mean length of the refusals in tokens of the model's own tokenizer",
}
TEMPLATE = "template"
"""Column of `drift`: which side has refusals to read a template from."""
BOTH, LOST, GAINED, NEITHER, NO_BASELINE = "both", "lost", "gained", "neither", "no baseline"

_OTHER = re.compile(r"[^a-z0-9 ]+")


@dataclass(frozen=True, slots=True)
class TemplateFeatures:
    """The four features of one cell; all 0 where it refused nothing."""

    refusals: int
    dominant_prefix_share: float
    unique_prefix_rate: float
    prefix_entropy_norm: float
    mean_tokens_refusal: float

    def as_dict(self) -> dict[str, float]:
        """Columns of the `templates` frame."""
        return asdict(self)


def prefix(text: str) -> str:
    """The first five words of an answer, normalised; see `DEFINITIONS`."""
    return " ".join(_OTHER.sub(" ", text.lower()).split()[:PREFIX_TOKENS])


def template_features(texts: Sequence[str], tokens: Sequence[int]) -> TemplateFeatures:
    """The features of the answers that refuse.

    Args:
        texts: Answers that an instrument read as refusals, and no others.
        tokens: Length of each, in tokens of the model's own tokenizer.

    Raises:
        ValueError: There are not as many lengths as answers.
    """
    if len(texts) != len(tokens):
        raise ValueError(f"{len(texts)} refusals and {len(tokens)} lengths")
    n = len(texts)
    if not n:
        return TemplateFeatures(0, 0.0, 0.0, 0.0, 0.0)
    counts = np.array(sorted(Counter(map(prefix, texts)).values()), np.float64)
    return TemplateFeatures(
        n,
        float(counts.max()) / n,
        len(counts) / n,
        _normalised_entropy(counts),
        float(np.mean(tokens)),
    )


def _normalised_entropy(counts: NDArray[np.float64]) -> float:
    if len(counts) < 2:
        return 0.0
    from scipy.stats import entropy

    return min(1.0, float(entropy(counts, base=2) / np.log2(len(counts))))


def drift(templates: pd.DataFrame) -> pd.DataFrame:
    """What each cell's features moved by from its baseline's.

    Args:
        templates: One row per model and cell, baselines among them: `model, family, cell,
            baseline` (a cell of the same model, "" for a baseline), `n_prompts, refusals` and the
            four features.

    Returns:
        One row per cell that has a baseline, in the given order: `model, family, cell, baseline`,
        `refusal_delta` (a share, cell minus baseline), the signed `DELTAS`, and `template`:
        `both` sides refused something; the cell `lost` all refusals; it `gained` the first ones;
        `neither` refused; `no baseline` was measured. Deltas are NaN in the last case only.

    Raises:
        TableError: A column is missing, or a cell stands there twice.
    """
    identity = ["model", "family", "cell", "baseline"]
    counts = ["n_prompts", "refusals"]
    needed = [*identity, *counts, *FEATURES]
    missing = [name for name in needed if name not in templates.columns]
    if missing:
        raise TableError(f"templates: column {missing[0]!r} is missing; there must be {needed}")
    twice = templates[templates.duplicated(["model", "cell"])]
    if len(twice):
        raise TableError(
            f"templates: {twice.iloc[0].model}/{twice.iloc[0].cell} stands there twice"
        )
    there = templates.assign(_known=True).drop(columns=["family", "baseline"])
    cells = templates[templates["baseline"] != ""]
    both = cells.merge(
        there,
        how="left",
        left_on=["model", "baseline"],
        right_on=["model", "cell"],
        suffixes=("", "_before"),
    )
    found = both[identity].copy()
    rates = [both[f"refusals{s}"] / both[f"n_prompts{s}"].where(lambda n: n > 0) for s in _SIDES]
    found["refusal_delta"] = rates[0] - rates[1]
    for name, delta in zip(FEATURES, DELTAS, strict=True):
        found[delta] = both[name] - both[f"{name}_before"]
    now, before = (both[f"refusals{side}"] > 0 for side in _SIDES)
    known = both["_known"].notna() & rates[0].notna() & rates[1].notna()
    found[TEMPLATE] = np.select(
        [~known, now & before, ~now & before, now & ~before],
        [NO_BASELINE, BOTH, LOST, GAINED],
        default=NEITHER,
    )
    return found


_SIDES = ("", "_before")
