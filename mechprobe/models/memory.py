"""Memory that is free but still held: given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    It keeps what is freed between other things, and the next model does not fit into such holes:
    the second model of a process would need a third more memory than the first.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
