"""Where organisms live, and how one comes to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mechprobe import cache
from mechprobe.errors import CheckpointError
from mechprobe.organisms.recipes import DEFAULT, RECIPES, Recipe, recipe

_SHIPPED = Path(__file__).parent / "data"
_MARKER = "card.json"
"""Written last into an organism's folder: a folder without it is not finished."""


@dataclass(frozen=True, slots=True)
class Organism:
    """One row of the list of organisms."""

    name: str
    recipe: Recipe
    path: Path | None
    """The folder of the trained organism; None where it has yet to be trained."""
    shipped: bool
    """Whether it comes with the package."""


def cache_folder(name: str) -> Path:
    """Where a trained organism is kept."""
    return cache.cache_folder() / "organisms" / name


def _found(name: str) -> Path | None:
    places = (_SHIPPED / name, cache_folder(name))
    return next((place for place in places if (place / _MARKER).is_file()), None)


def organism_path(name: str = DEFAULT) -> Path:
    """The folder of a trained organism, a checkpoint as transformers writes it.

    Raises:
        CheckpointError: No organism has that name, or it is not trained yet.
    """
    recipe(name)
    path = _found(name)
    if path is None:
        raise CheckpointError(
            f"organism {name} is not trained yet; run: mechprobe organisms train {name}"
        )
    return path


def list_organisms() -> tuple[Organism, ...]:
    """Every organism that can be trained, those on this machine with their folder."""
    found = []
    for name, how in sorted(RECIPES.items()):
        path = _found(name)
        shipped = path is not None and path.parent == _SHIPPED
        found.append(Organism(name, how, path, shipped))
    return tuple(found)
