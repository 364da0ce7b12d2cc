"""Two instruments of refusal on the same answers: how far they agree, and where they diverge."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mechprobe import stats
from mechprobe.analysis.ensemble import with_clusters
from mechprobe.analysis.regimes import DIVERGENCE
from mechprobe.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd


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
    share: Estimate
    """Its interval counts a prompt with all its answers as one."""
    kappa: Estimate | None
    """Cohen's; None where an instrument gives one label alone."""
    cells: tuple[CellAgreement, ...]


def compare_instruments(
    outcomes: pd.DataFrame, first: str, second: str
) -> InstrumentAgreement | None:
    """Compare two instruments, prompt by prompt.

    Args:
        outcomes: Lines of one yes-or-no measure: `model, cell, prompt, cluster, instrument,
            value`.
        first: An instrument.
        second: Another.

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
    of, _ = pd.factorize(with_clusters(both)["cluster"])
    share = stats.share_estimate(a == b, clusters=of)
    kappa = stats.kappa_estimate(a, b, clusters=of)
    assert share is not None
    return InstrumentAgreement(
        n=len(both),
        unread=unread,
        agree=int((a == b).sum()),
        share=share,
        kappa=kappa,
        cells=tuple(CellAgreement(*row) for row in of_cell.itertuples(index=False)),
    )
