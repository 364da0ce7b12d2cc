"""How threads of OpenMP wait for each other where other programs want the cores as well."""

from __future__ import annotations

from collections.abc import MutableMapping
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
        environment: Of the process. libgomp reads it once, when it is loaded; where torch comes
            first, llama.cpp computes with torch's libgomp too.
    """
    if not any(name in environment for name in _NAMED):
        environment[_SPINS] = FEW_SPINS
