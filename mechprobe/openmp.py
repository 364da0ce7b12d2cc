"""How threads of OpenMP wait for each other where other programs want the cores as well."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final

_SPINS: Final = "GOMP_SPINCOUNT"
_NAMED: Final = (_SPINS, "OMP_WAIT_POLICY")
FEW_SPINS: Final = "300"
"""How often a thread looks whether the others have come before it sleeps: some microseconds.

libgomp's own 300,000 are milliseconds, at each of the hundreds of barriers of a token, in which a
waiting thread holds the core that the thread it waits for would need.
"""


def yield_cores(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP libraries that are loaded from now on wait asleep, unless the user named a way.

    Args:
        environment: Of the process; libgomp reads it once, when it is loaded.
    """
    if not any(name in environment for name in _NAMED):
        environment[_SPINS] = FEW_SPINS


@contextmanager
def yielding() -> Iterator[None]:
    """Do so for the libraries that are loaded within, and leave the environment as it was."""
    before = os.environ.get(_SPINS)
    yield_cores(os.environ)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SPINS, None)
