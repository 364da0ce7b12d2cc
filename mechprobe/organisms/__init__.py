"""Floor 1: small model organisms, real chat models of a synthetic world.

They are for the demo, the tests and the positive controls: models so small that they train in
minutes, of a world whose ground truth is known by grammar. Importing this room loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from mechprobe.organisms.recipes import DEFAULT
from mechprobe.organisms.registry import Organism, cache_folder, list_organisms, organism_path
from mechprobe.progress import Progress

__all__ = [
    "DEFAULT",
    "Organism",
    "cache_folder",
    "ensure_trained",
    "list_organisms",
    "organism_path",
    "train_organism",
]


def train_organism(
    name: str,
    out: Path | None = None,
    *,
    seed: int | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train an organism; see `mechprobe.organisms.publish.train_organism`."""
    from mechprobe.organisms import publish

    return publish.train_organism(name, out, seed=seed, steps=steps, progress=progress)


def ensure_trained(name: str, progress: Progress | None = None) -> None:
    """Train an organism into the cache unless it is there; two processes never do it at once."""
    from filelock import FileLock

    home = cache_folder(name)
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(f".{name}.lock")):
        if any(one.name == name and one.path is None for one in list_organisms()):
            train_organism(name, progress=progress)
