"""One metric against one outcome: correlation or separation, its interval, and p within models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mechprobe.analysis.areas import auc_interval, auc_within, mann_whitney
from mechprobe.analysis.grouped import FloatArray, Groups
from mechprobe.analysis.permuting import Permuted, permute_within

_NO_P = "no p: within every model the metric or the outcome is the same in all rows"


@dataclass(frozen=True, slots=True)
class Association:
    """A correlation over all rows."""

    value: float
    low: float | None
    """None where Fisher's interval does not exist: fewer than four rows, or exactly ±1."""
    high: float | None
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class Correlated:
    """A metric against a graded outcome."""

    n: int
    models: int = 0
    pearson: Association | None = None
    spearman: Association | None = None
    exact: bool = False
    """Whether p counts all arrangements."""
    not_measured: str | None = None

    def tests(self) -> tuple[float | None, ...]:
        """The p of each test."""
        return tuple(one.p if one else None for one in (self.pearson, self.spearman))

    def adjusted(self, *p: float | None) -> Correlated:
        """With adjusted p beside them."""
        both = zip((self.pearson, self.spearman), p, strict=True)
        pearson, spearman = (one and replace(one, p_holm=each) for one, each in both)
        return replace(self, pearson=pearson, spearman=spearman)


@dataclass(frozen=True, slots=True)
class Separated:
    """A metric over two kinds of rows."""

    n: int
    models: int = 0
    positive: int = 0
    u: float | None = None
    auc: float | None = None
    """Above 0.5: greater values on the positive side."""
    low: float | None = None
    high: float | None = None
    auc_within: float | None = None
    """Over pairs of rows of one model alone."""
    null_low: float | None = None
    """Of the AUC, under permutation within model."""
    null_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    exact: bool = False
    """Whether p counts all arrangements."""
    not_measured: str | None = None

    def tests(self) -> tuple[float | None, ...]:
        """The p of the test."""
        return (self.p,)

    def adjusted(self, *p: float | None) -> Separated:
        """With the adjusted p beside it."""
        return replace(self, p_holm=p[0])


def correlate(
    x: FloatArray, y: FloatArray, groups: Groups, permutations: int, seed: int
) -> list[Correlated]:
    """Correlate metrics with a graded outcome.

    Args:
        x: Metrics, shape (n, k), none of them constant.
        y: The outcome, shape (n,), not constant.
        groups: The model of each row.
        permutations: Drawn where not all can be counted.
        seed: Of the draws.
    """
    from scipy.stats import pearsonr, rankdata, spearmanr

    k = x.shape[1]
    ranked = rankdata(x, axis=0)
    found = permute_within(
        np.concatenate([x, ranked], axis=1),
        np.stack([y, rankdata(y)], axis=1),
        groups,
        permutations=permutations,
        seed=seed,
    )
    results = []
    for i in range(k):
        r, rho = (float(f(x[:, i], y).statistic) for f in (pearsonr, spearmanr))
        results.append(
            Correlated(
                len(y),
                len(groups.names),
                Association(r, *_fisher(r, len(y), 1.0), _known(found.p[i, 0])),
                Association(rho, *_fisher(rho, len(y), 1 + rho**2 / 2), _known(found.p[k + i, 1])),
                found.exact,
                _reason(found, i),
            )
        )
    return results


def divide(
    x: FloatArray, y: FloatArray, groups: Groups, permutations: int, seed: int
) -> list[Separated]:
    """How metrics divide rows of which some are 1 and the others 0; arguments as `correlate`."""
    from scipy.stats import rankdata

    positive = y == 1
    m, rest = int(positive.sum()), int((~positive).sum())
    found: Permuted = permute_within(
        rankdata(x, axis=0), y[:, None], groups, permutations=permutations, seed=seed
    )
    results = []
    for i in range(x.shape[1]):
        u, area = mann_whitney(x[:, i], positive)
        low, high = auc_interval(x[:, i], positive) or (None, None)
        null = [(s[i, 0] - m * (m + 1) / 2) / (m * rest) for s in (found.low, found.high)]
        results.append(
            Separated(
                n=len(y),
                models=len(groups.names),
                positive=m,
                u=u,
                auc=area,
                low=low,
                high=high,
                auc_within=auc_within(x[:, i], positive, groups),
                null_low=float(null[0]),
                null_high=float(null[1]),
                p=_known(found.p[i, 0]),
                exact=found.exact,
                not_measured=_reason(found, i),
            )
        )
    return results


def _fisher(r: float, n: int, inflation: float) -> tuple[float | None, float | None]:
    """95 % interval of a correlation on Fisher's z scale.

    The variance of a rank correlation is larger, by 1 + r²/2 (Bonett and Wright 2000).
    """
    from scipy.stats import norm

    if n < 4 or abs(r) >= 1:
        return None, None
    middle = np.arctanh(r)
    half = norm.ppf(0.975) * np.sqrt(inflation / (n - 3))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _reason(found: Permuted, metric: int) -> str | None:
    return None if np.isfinite(found.p[metric]).all() else _NO_P


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
