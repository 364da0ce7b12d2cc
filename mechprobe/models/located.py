"""Where a file lies on this machine that a plan made elsewhere calls by another path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_PLACES: dict[str, Path] = {}


@contextmanager
def lying_at(places: Mapping[str, Path]) -> Iterator[None]:
    """Read these sources and files from these places; results keep the names they go by.

    Args:
        places: Source or path as a plan names it, and where its files were brought.
    """
    before = dict(_PLACES)
    _PLACES.update(places)
    try:
        yield
    finally:
        _PLACES.clear()
        _PLACES.update(before)


def located(text: str | Path) -> str:
    """The path where a source lies here; the source itself where it was not brought."""
    return str(_PLACES.get(str(text), text))
