"""What must be on this machine before a spec can be planned, and is made here: organisms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from mechprobe.experiments.sources import is_away
from mechprobe.experiments.spec import Spec
from mechprobe.progress import Progress

_PREFIX = "organism:"


def source_texts(spec: Spec) -> list[tuple[str, str | None]]:
    """Every source that a spec names, with its revision, once and in order."""
    found: dict[tuple[str, str | None], None] = {}
    for model in spec.models:
        for text in (model.source, model.tokenizer):
            if text:
                found[text, model.revision] = None
        for given in model.cells:
            if given.source:
                found[given.source, given.revision or model.revision] = None
    return list(found)


def untrained_organisms(spec: Spec) -> list[str]:
    """Names of the organisms of a spec that have a recipe and are not trained yet."""
    from mechprobe.organisms import list_organisms

    waiting = {one.name for one in list_organisms() if one.path is None}
    texts = (text for text, _ in source_texts(spec) if text.startswith(_PREFIX))
    return [name for text in texts if (name := text.removeprefix(_PREFIX)) in waiting]


def is_incomplete(spec: Spec) -> bool:
    """Whether a source of a spec is still to be trained or downloaded."""
    return bool(untrained_organisms(spec)) or any(is_away(*each) for each in source_texts(spec))


def train_missing(spec: Spec, tell: Callable[[str], AbstractContextManager[Progress]]) -> None:
    """Train what is missing, one after the other; two processes never train the same one at once.

    Args:
        spec: The matrix.
        tell: Is told each organism's name before its training begins, and shows how far it is.
    """
    from filelock import FileLock

    from mechprobe.organisms import train_organism
    from mechprobe.organisms.registry import cache_folder

    for name in untrained_organisms(spec):
        home = cache_folder(name)
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_name(f".{name}.lock")):
            if name in untrained_organisms(spec):  # another process may have done it meanwhile
                with tell(name) as progress:
                    train_organism(name, progress=progress)
