"""A share of prompts, with what it was measured on and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

from mechprobe import stats


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

    def __str__(self) -> str:
        """For a table: `41.2 % [33.0, 49.8] (56/136)`."""
        if self.rate is None:
            return "not measured"
        span = f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.rate:.1f} % {span} ({self.count}/{self.n})"
