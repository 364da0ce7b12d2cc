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

Status = Literal["ok", "constant", "separated", "not converged", "too few clusters"]
_LEAST_CLUSTERS = 10
"""Below this a robust variance is no variance."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """CDI at one temperature."""

    temperature: float
    value: float | None
    """Rate of the cell, at T minus at 0, minus the same of its baseline; in [-2, 2]."""
    low: float | None
    """95 % cluster bootstrap; None where no two clusters differ, so that it knows no error."""
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
        baseline: The same of the 16-bit cell.
        temperature: Above 0.
    """
    import pandas as pd

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
    sums = both.groupby(clusters.reindex(both.index)).sum().to_numpy(np.float64).T
    dropped = len(asked) - len(both)
    if not len(both):
        return Contrast(temperature, None, None, None, 0, dropped)

    def contrast(*columns: FloatArray, axis: int = -1) -> FloatArray:
        total = [column.sum(axis=axis) for column in columns]
        rates = [total[i] / total[i + 1] for i in range(0, 8, 2)]
        found: FloatArray = rates[0] - rates[1] - rates[2] + rates[3]
        return found

    data = tuple(sums)
    value = float(contrast(*data))
    each = contrast(*(column[:, None] for column in data))
    if len(each) < 2 or np.ptp(each) == 0:
        return Contrast(temperature, value, None, None, len(both), dropped)
    method = "BCa" if len(each) <= 1000 else "percentile"
    low, high = stats.bootstrap_interval(data, contrast, 2000, 0, paired=True, method=method)
    return Contrast(temperature, value, low, high, len(both), dropped)


@dataclass(frozen=True, slots=True)
class Interaction:
    """The precision x temperature term of a logistic GEE, in log-odds per unit of temperature."""

    status: Status
    why: str
    """Of any status but `ok`, one line."""
    coefficient: float | None
    low: float | None
    high: float | None
    p: float | None
    """Of the Wald test against 0."""
    detectable: float | None
    """The smallest coefficient that this design finds at the 5 % level with 80 % power."""
    precision: float | None
    """Log-odds of answering, cell against baseline, at temperature 0."""
    temperature: float | None
    """Log-odds of answering per unit of temperature, in the baseline."""
    answers: int
    clusters: int


def _refused(status: Status, why: str, answers: int, clusters: int) -> Interaction:
    return Interaction(status, why, None, None, None, None, None, None, None, answers, clusters)


def gee_interaction(cell: pd.DataFrame, baseline: pd.DataFrame) -> Interaction:
    """Whether temperature moves a cell's answers otherwise than its baseline's.

    Every decided sample is one answer: logit P(answered) = a + b q + c T + d q T, q being 1 in the
    cell. Answers of a cluster of prompts are correlated in any way (independence as working
    correlation, variance by Mancl and DeRouen 2001, which few clusters do not make too small).

    Args:
        cell: Tally of the cell's harmful prompts, all temperatures.
        baseline: The same of its baseline.

    Source: Liang and Zeger 1986, through `statsmodels.genmod.GEE`.
    """
    import pandas as pd

    table = pd.concat([cell.assign(q=1.0), baseline.assign(q=0.0)], ignore_index=True)
    y, x, groups = _answers(table)
    n, clusters = len(y), len(np.unique(groups))
    if clusters < _LEAST_CLUSTERS:
        why = f"{clusters} clusters of prompts; {_LEAST_CLUSTERS} are needed"
        return _refused("too few clusters", why, n, clusters)
    if len(np.unique(y)) < 2:
        said = "answered" if y[0] else "refused"
        return _refused("constant", f"every sample of both cells is {said}", n, clusters)
    if separated(x, y):
        why = "some combination of precision and temperature decides the answer without exception"
        return _refused("separated", f"{why}, so that log-odds have no bound", n, clusters)
    return _fitted(y, x, groups, n, clusters)


def _answers(table: pd.DataFrame) -> tuple[FloatArray, FloatArray, np.ndarray]:  # type: ignore[type-arg]
    """Outcomes (n,), design (n, 4) and clusters (n,), one row per decided sample."""
    hit, total = table["comply"].to_numpy(np.int64), table["decided"].to_numpy(np.int64)
    which = np.repeat(np.arange(len(table)), total)
    within = np.arange(len(which)) - np.repeat(np.cumsum(total) - total, total)
    y = (within < hit[which]).astype(np.float64)
    q, t = (table[name].to_numpy(np.float64)[which] for name in ("q", "temperature"))
    _, groups = np.unique(table["cluster"].astype(str).to_numpy(), return_inverse=True)
    return y, np.stack([np.ones_like(q), q, t, q * t], axis=1), groups[which]


def separated(x: FloatArray, y: FloatArray) -> bool:
    """Whether a logistic regression of y on x has no finite maximum.

    So it is where some direction predicts no answer wrongly and at least one rightly: a linear
    programme over the distinct rows.

    Args:
        x: Design, shape (n, columns).
        y: 0 or 1, shape (n,).

    Source: Albert and Anderson 1984; Konis 2007.
    """
    from scipy.optimize import linprog

    signed = np.unique(x * np.where(y > 0, 1.0, -1.0)[:, None], axis=0)
    bounds = [(-1.0, 1.0)] * x.shape[1]
    best = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(signed)), bounds=bounds)
    assert best.success, best.message  # 0 is feasible and the box is bounded
    return bool(-best.fun > 1e-9)


def _fitted(y: FloatArray, x: FloatArray, groups: object, n: int, clusters: int) -> Interaction:
    from scipy.stats import norm
    from statsmodels.genmod.cov_struct import Independence
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_estimating_equations import GEE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is asked for below
        model = GEE(y, x, groups=groups, family=Binomial(), cov_struct=Independence())
        fit = model.fit(cov_type="bias_reduced", maxiter=100)
    errors = np.asarray(fit.bse, np.float64)
    if not fit.converged or not np.isfinite(errors).all() or not (errors > 0).all():
        why = "the estimating equations did not converge in 100 iterations"
        return _refused("not converged", why, n, clusters)
    b, c, d = (float(value) for value in fit.params[1:])
    error = float(errors[3])
    reach = float(norm.ppf(0.975)) * error
    return Interaction(
        "ok", "", d, d - reach, d + reach, float(fit.pvalues[3]),
        reach + float(norm.ppf(0.8)) * error, b, c, n, clusters,
    )  # fmt: skip
