"""Two instruments of refusal on the same answers: how far they agree, and where they diverge."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.analysis.ensemble import with_clusters
from mechprobe.analysis.regimes import DIVERGENCE

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CellAgreement:
    """One cell as both instruments read it, over the answers that both could read."""

    model: str
    cell: str
    n: int
    agree: int
    first: int
    """Refusals by the first instrument."""
    second: int

    @property
    def points(self) -> Fraction:
        """Refusal rate of the second minus that of the first, exactly."""
        return Fraction(100 * (self.second - self.first), self.n)

    @property
    def diverges(self) -> bool:
        """Whether the rates differ by 20 points or more: a flag of arXiv 2606.10154."""
        return abs(self.points) >= DIVERGENCE


@dataclass(frozen=True, slots=True)
class InstrumentAgreement:
    """Two instruments over the answers of all cells."""

    n: int
    unread: int
    """Answers that one of them could not read."""
    agree: int
    share: tuple[float, float, float]
    """With its 95 % interval, prompts resampled with all their answers.

    Instruments that never differ leave a bootstrap without error; the lower end is then Wilson's
    for as many agreements as there are clusters, and that of kappa follows from it.
    """
    kappa: tuple[float, float, float] | None
    """Cohen's; None where an instrument gives one label alone."""
    cells: tuple[CellAgreement, ...]


def compare_instruments(
    outcomes: pd.DataFrame, first: str, second: str, *, resamples: int = 1000, seed: int = 0
) -> InstrumentAgreement | None:
    """Compare two instruments, prompt by prompt.

    Args:
        outcomes: Lines of one yes-or-no measure: `model, cell, prompt, cluster, instrument,
            value`.
        first: An instrument.
        second: Another.
        resamples: Of the bootstrap over clusters of prompts.
        seed: Of the bootstrap.

    Returns:
        None where no answer was read by both.
    """
    import pandas as pd

    keys = ["model", "cell", "prompt"]
    sides = [outcomes[outcomes["instrument"] == name] for name in (first, second)]
    both = sides[0].merge(sides[1][[*keys, "value"]], on=keys, suffixes=("", "_second"))
    readable = both["value"].isin([0, 1]) & both["value_second"].isin([0, 1])
    unread, both = int((~readable).sum()), both[readable]
    if not len(both):
        return None
    a, b = (both[name].to_numpy(np.int64) for name in ("value", "value_second"))
    cells = both[["model", "cell"]].astype(str).assign(n=1, agree=a == b, first=a, second=b)
    of_cell = cells.groupby(["model", "cell"], sort=False).sum().astype(int).reset_index()
    of, names = pd.factorize(with_clusters(both)["cluster"], sort=True)
    table = np.zeros((len(names), 4))
    np.add.at(table, (of, 2 * a + b), 1)
    drawn = _resample(table, resamples, seed)
    whole = table.sum(axis=0)
    kappa = float(_kappa(whole[None])[0])
    share = float((whole[0] + whole[3]) / whole.sum())
    agreed = stats.share_estimate(a == b, clusters=of)
    assert agreed is not None
    of_share = (agreed.low, agreed.high)
    of_kappa = _bounds(_kappa(drawn)) if np.isfinite(kappa) else None
    if share == 1:
        bound, _ = stats.wilson(len(names), len(names))
        chance = float(whole @ whole) / float(whole.sum()) ** 2
        of_share = (bound, 1.0)
        of_kappa = of_kappa and ((bound - chance) / (1 - chance), 1.0)
    return InstrumentAgreement(
        n=len(both),
        unread=unread,
        agree=int(whole[0] + whole[3]),
        share=(share, *of_share),
        kappa=of_kappa and (kappa, *of_kappa),
        cells=tuple(CellAgreement(*row) for row in of_cell.itertuples(index=False)),
    )


def _resample(table: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Sums over clusters drawn again, shape (resamples, columns)."""
    n = len(table)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    found: FloatArray = drawn.astype(np.float64) @ table
    return found


def _kappa(table: FloatArray) -> FloatArray:
    """Cohen's kappa of many 2 x 2 tables [00, 01, 10, 11], shape (k, 4); NaN with one label."""
    n = table.sum(axis=1)
    first, second = (table[:, 2] + table[:, 3]) / n, (table[:, 1] + table[:, 3]) / n
    chance = first * second + (1 - first) * (1 - second)
    found = np.full(len(table), np.nan)
    np.divide((table[:, 0] + table[:, 3]) / n - chance, 1 - chance, out=found, where=chance < 1)
    return found


def _bounds(values: FloatArray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
