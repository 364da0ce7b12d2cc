"""Do precision and temperature act together? A contrast of rates, and a logistic GEE.

Both look at harmful prompts: CDI on the scale of rates, where one cell that already answers
everything has no room for more; the GEE on the scale of log-odds. They may disagree, and say other
things when they do.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mechprobe import stats
from mechprobe.stats import FloatArray

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["ok", "constant", "sparse", "not converged", "too few clusters"]
_LEAST_CLUSTERS = 10
"""Below this a robust variance is no variance."""
_ROUNDING = 1e-12
_LEAST_EACH = 5
"""Clusters that answered, and as many that refused, in both cells: a temperature with fewer says
little of log-odds and what it says is biased."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """CDI at one temperature."""

    temperature: float
    value: float | None
    """Rate of the cell, at T minus at 0, minus the same of its baseline; in [-2, 2]."""
    low: float | None
    """95 %, Student's by an error over clusters (`stats.linear_error`); None where no two prompts
    differ, so that there is no error, and with fewer than 10 clusters.
    """
    high: float | None
    prompts: int
    """Prompts with a decided sample in all four."""
    dropped: int
    """Prompts without."""


def cdi(cell: pd.DataFrame, baseline: pd.DataFrame, temperature: float) -> Contrast:
    """Interaction contrast ASR(q,T) - ASR(q,0) - ASR(fp,T) + ASR(fp,0), prompts paired.

    The name is that of arXiv 2606.29581, which gives no formula; this one is mechprobe's.

    Args:
        cell: Tally of the quantized cell's harmful prompts, all temperatures.
        baseline: The same of the baseline.
        temperature: Above 0.
    """
    import pandas as pd
    from scipy.stats import t as student

    parts = []
    for name, table, at in (
        ("qT", cell, temperature),
        ("q0", cell, 0.0),
        ("fT", baseline, temperature),
        ("f0", baseline, 0.0),
    ):
        chosen = table[(table["temperature"] == at) & (table["decided"] > 0)]
        columns = chosen.set_index("prompt")[["comply", "decided"]]
        parts.append(columns.add_prefix(f"{name} "))
    both = pd.concat(parts, axis=1, join="inner")
    asked = {*cell["prompt"], *baseline["prompt"]}
    clusters = cell.drop_duplicates("prompt").set_index("prompt")["cluster"]
    dropped = len(asked) - len(both)
    if not len(both):
        return Contrast(temperature, None, None, None, 0, dropped)
    codes = stats.cluster_codes(clusters.reindex(both.index).tolist(), len(both))
    value, means = 0.0, []
    for sign, part in ((1, "qT"), (-1, "q0"), (-1, "fT"), (1, "f0")):
        hit, total = (both[f"{part} {x}"].to_numpy(np.float64) for x in ("comply", "decided"))
        rate = float(hit.sum() / total.sum())
        value += sign * rate
        means.append((sign * (hit - rate * total) / total.sum(), total))
    if codes.max() + 1 < _LEAST_CLUSTERS:
        return Contrast(temperature, value, None, None, len(both), dropped)
    error, freedom = stats.linear_error(*((*mean, codes) for mean in means))
    alone, _ = stats.linear_error(*((*mean, np.arange(len(both))) for mean in means))
    half = float(student.ppf(0.975, freedom)) * max(error, alone)
    if half < _ROUNDING:
        return Contrast(temperature, value, None, None, len(both), dropped)
    return Contrast(temperature, value, value - half, value + half, len(both), dropped)


@dataclass(frozen=True, slots=True)
class Interaction:
    """The precision x temperature term of a logistic GEE, in log-odds per unit of temperature."""

    status: Status
    why: str
    """Of any status but `ok`, one line."""
    tested: tuple[float, ...]
    """Temperatures in the test."""
    left_out: tuple[float, ...]
    """Temperatures where a cell has too few clusters that answered, or too few that refused."""
    answers: int
    """Decided samples of both cells at the tested temperatures."""
    clusters: int
    """Of prompts with such a sample."""
    coefficient: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Of the Wald test against 0."""
    detectable: float | None = None
    """The smallest coefficient that this design finds at the 5 % level with 80 % power."""
    precision: float | None = None
    """Log-odds of answering, cell against baseline, where the line in T meets temperature 0."""
    temperature: float | None = None
    """Log-odds of answering in the baseline, the highest tested temperature against the lowest."""


def gee_interaction(cell: pd.DataFrame, baseline: pd.DataFrame) -> Interaction:
    """Whether temperature moves a cell's answers otherwise than its baseline's.

    Every decided sample is one answer: logit P(answered) = a_T + b q + d q T, q being 1 in the cell
    and a_T free at each temperature, so that no bend in what temperature does to both is taken for
    d. Answers of a cluster of prompts are correlated in any way (independence as working
    correlation, variance by Mancl and DeRouen 2001, which few clusters do not make too small), and
    the term over its error is held against Student's t with a degree for each cluster but those
    that the coefficients took.

    A temperature enters where in both cells 5 clusters or more have an answered sample and 5 or
    more a refused one. So log-odds have bounds: no combination of precision and temperature
    decides an answer without exception.

    Args:
        cell: Tally of the cell's harmful prompts, all temperatures.
        baseline: The same of its baseline.

    Source: Liang and Zeger 1986, through `statsmodels.genmod.GEE`.
    """
    import pandas as pd
    from scipy.stats import t as student

    both = pd.concat([cell.assign(q=1.0), baseline.assign(q=0.0)], ignore_index=True)
    tested = _tested(both)
    left_out = tuple(sorted({float(t) for t in both["temperature"]} - set(tested)))
    table = both[both["temperature"].isin(tested)]
    n = int(table["decided"].sum())
    clusters = table.loc[table["decided"] > 0, "cluster"].nunique()
    asked = both.loc[both["decided"] > 0, "cluster"].nunique()

    def refused(status: Status, why: str) -> Interaction:
        return Interaction(status, why, tested, left_out, n, clusters)

    if asked < _LEAST_CLUSTERS:
        why = f"{asked} clusters of prompts; {_LEAST_CLUSTERS} are needed"
        return refused("too few clusters", why)
    answered = int(both["comply"].sum())
    if answered in (0, int(both["decided"].sum())):
        said = "answered" if answered else "refused"
        return refused("constant", f"every decided sample of both cells is {said}")
    if len(tested) < 2:
        why = (
            f"{len(tested)} of {len(tested) + len(left_out)} temperatures have {_LEAST_EACH} "
            "clusters that answered and as many that refused in both cells; 2 are needed"
        )
        return refused("sparse", why)
    if clusters < _LEAST_CLUSTERS:
        why = (
            f"{clusters} clusters of prompts at the tested temperatures; {_LEAST_CLUSTERS} are "
            "needed"
        )
        return refused("too few clusters", why)
    fit = _fitted(table, tested)
    if fit is None:
        why = "the estimating equations did not converge in 100 iterations"
        return refused("not converged", why)
    d, error, b, c = fit
    law = student(clusters - len(tested) - 2)
    reach, more = (error * float(law.ppf(share)) for share in (0.975, 0.8))
    p = 2 * float(law.sf(abs(d) / error))
    return Interaction(
        "ok", "", tested, left_out, n, clusters, d, d - reach, d + reach, p, reach + more, b, c
    )


def _tested(both: pd.DataFrame) -> tuple[float, ...]:
    """Temperatures where both cells have enough clusters on either side."""
    sides = (both["comply"] > 0, both["decided"] > both["comply"])
    found = []
    for at in sorted({float(t) for t in both["temperature"]}):
        here = both["temperature"] == at
        groups = [
            both.loc[here & (both["q"] == q) & side, "cluster"] for q in (0, 1) for side in sides
        ]
        if min(group.nunique() for group in groups) >= _LEAST_EACH:
            found.append(at)
    return tuple(found)


def _answers(
    table: pd.DataFrame, tested: tuple[float, ...]
) -> tuple[FloatArray, FloatArray, np.ndarray]:  # type: ignore[type-arg]
    """Outcomes (n,), design (n, temperatures + 2) and clusters (n,), one row per decided sample."""
    hit, total = table["comply"].to_numpy(np.int64), table["decided"].to_numpy(np.int64)
    which = np.repeat(np.arange(len(table)), total)
    within = np.arange(len(which)) - np.repeat(np.cumsum(total) - total, total)
    y = (within < hit[which]).astype(np.float64)
    q, t = (table[name].to_numpy(np.float64)[which] for name in ("q", "temperature"))
    levels = [(t == at).astype(np.float64) for at in tested]
    _, groups = np.unique(table["cluster"].astype(str).to_numpy(), return_inverse=True)
    return y, np.stack([*levels, q, q * t], axis=1), groups[which]


def _fitted(
    table: pd.DataFrame, tested: tuple[float, ...]
) -> tuple[float, float, float, float] | None:
    """The interaction and its error; precision; temperature. None where nothing converged."""
    from statsmodels.genmod.cov_struct import Independence
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_estimating_equations import GEE

    y, x, groups = _answers(table, tested)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is asked for below
        model = GEE(y, x, groups=groups, family=Binomial(), cov_struct=Independence())
        fit = model.fit(cov_type="bias_reduced", maxiter=100)
    errors = np.asarray(fit.bse, np.float64)
    if not fit.converged or not np.isfinite(errors).all() or not (errors > 0).all():
        return None
    *levels, b, d = (float(value) for value in fit.params)
    return d, float(errors[-1]), b, levels[-1] - levels[0]
