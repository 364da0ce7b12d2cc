"""A share of prompts, with what it was measured on and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.stats import Clusters


@dataclass(frozen=True, slots=True)
class Rate:
    """Count out of n as a share, with its Wilson 95 % interval."""

    n: int
    count: int
    rate: float | None
    """Share in [0, 1]; None at n = 0, which is `not measured` and never 0."""
    low: float
    high: float
    unread: int = 0
    """Answers left out of `n` because they ended before there was anything to read."""

    @classmethod
    def of(cls, count: int, n: int, *, unread: int = 0) -> Rate:
        """The rate of `count` among `n`; the interval comes from `mechprobe.stats.wilson`."""
        low, high = stats.wilson(count, n)
        return cls(n, count, count / n if n else None, low, high, unread)

    @classmethod
    def among(
        cls,
        outcomes: Sequence[Any] | NDArray[Any],
        clusters: Clusters | None = None,
        *,
        unread: int = 0,
    ) -> Rate:
        """The rate of true outcomes; prompts of one cluster count together.

        Args:
            outcomes: True or false of each prompt, or 1 and 0.
            clusters: To which cluster each prompt belongs; None makes each its own.
            unread: Answers that are not among them.
        """
        found = stats.share_estimate([float(one) for one in outcomes], clusters=clusters)
        rate = cls.of(sum(bool(one) for one in outcomes), len(outcomes), unread=unread)
        return rate if found is None else replace(rate, low=found.low, high=found.high)

    def __str__(self) -> str:
        """For a table: `41.2 % [33.0, 49.8] (56/136)`."""
        if self.rate is None:
            return "not measured"
        span = f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.rate:.1f} % {span} ({self.count}/{self.n})"
