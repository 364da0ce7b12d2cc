"""One model at a time: what the steps of a cell share while it is their turn."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

T = TypeVar("T")


class Workbench:
    """Holds one loaded thing; asking for another one releases the first, then loads.

    A context manager is entered when it is loaded and left when it is released.
    """

    def __init__(self) -> None:
        self._key: str | None = None
        self._value: Any = None
        self._stack = ExitStack()

    def hold(self, key: str, load: Callable[[], T]) -> T:
        """What is on the bench under `key`, loading it if something else is there."""
        if key != self._key:
            self.clear()
            value = load()
            if hasattr(value, "__exit__"):
                value = self._stack.enter_context(value)  # type: ignore[arg-type]
            self._key, self._value = key, value
        return self._value  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Release what is there."""
        loaded = self._key is not None
        self._key = self._value = None
        self._stack.close()
        self._stack = ExitStack()
        if loaded:
            gc.collect()  # modules of a graph refer to each other in circles
