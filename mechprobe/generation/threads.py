"""How many threads llama.cpp computes with: measured on first prompts, and again when rates move.

A second thread may halve the time or double it: it depends on the model's size and on what else the
machine does. Logits do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MEASURED_PROMPTS: Final = 8
MEASURED_TOKENS: Final = 64
"""Of a prompt, its first ones."""
MEASURED_STEPS: Final = 4
"""Tokens generated after each."""
WORTH: Final = 4000
"""Tokens below which a measurement would cost more than it can bring, and a rate says little."""
BETTER: Final = 1.1
"""Fewer threads are taken where they are that much faster."""
FELL: Final = 0.7
ROSE: Final = 1.4
"""Ratio to the first rate after a choice beyond which the machine is another one than it was."""


class ThreadChoice:
    """The number of threads of one engine."""

    def __init__(self, asked: int | None, most: int) -> None:
        """Begin with as many as were asked for, and keep them; else with the most.

        Args:
            asked: None is measured.
            most: Threads that can compute at the same time.
        """
        self.count = most if asked is None else asked
        self._most = most
        self._fixed = asked is not None or most == 1
        self._rate: float | None = None
        self._due = True

    def is_due(self, tokens: int) -> bool:
        """Whether to measure before so many tokens are read and written."""
        return self._due and not self._fixed and tokens >= WORTH

    def measure(self, rate: Callable[[int], float]) -> None:
        """Choose between all threads, half of them, and so on as long as fewer are faster.

        Args:
            rate: Tokens per second with so many threads.
        """
        self.count, fastest = self._most, rate(self._most)
        while self.count > 1 and (found := rate(self.count // 2)) > BETTER * fastest:
            self.count, fastest = self.count // 2, found
        self._due, self._rate = False, None

    def saw(self, tokens: int, seconds: float) -> None:
        """Take note of what a batch took; where its rate fell or rose, the next one is measured."""
        if self._due or self._fixed or tokens < WORTH:
            return
        rate = tokens / seconds
        if self._rate is None:
            self._rate = rate
        self._due = not FELL <= rate / self._rate <= ROSE
