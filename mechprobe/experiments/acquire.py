"""What must be on this machine before a spec can be planned, and is made here.

Organisms are trained, controls built.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from mechprobe.experiments.sources import is_away
from mechprobe.experiments.spec import Spec
from mechprobe.models.control_source import CONTROL
from mechprobe.progress import Progress

ORGANISM = "organism:"


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


def unmade_sources(spec: Spec) -> list[str]:
    """Sources of a spec that this machine makes and has not made yet: organisms and controls."""
    from mechprobe.controls import built_folder, controls
    from mechprobe.organisms import list_organisms

    untrained = {ORGANISM + one.name for one in list_organisms() if one.path is None}
    rows = {CONTROL + row.name: row for row in controls()}
    return [
        text
        for text, _ in source_texts(spec)
        if text in untrained or (text in rows and built_folder(rows[text]) is None)
    ]


def is_incomplete(spec: Spec) -> bool:
    """Whether a source of a spec is still to be made or downloaded."""
    return bool(unmade_sources(spec)) or any(is_away(*each) for each in source_texts(spec))


def make_missing(spec: Spec, tell: Callable[[str], AbstractContextManager[Progress]]) -> None:
    """Make what is missing, one after the other; two processes never make the same one at once.

    Args:
        spec: The matrix.
        tell: Is told each source before it is made, and shows how far it is.
    """
    from mechprobe.controls import control, ensure_built
    from mechprobe.organisms import ensure_trained

    for text in unmade_sources(spec):
        name = text.partition(":")[2]
        with tell(text) as progress:
            if text.startswith(CONTROL):
                ensure_built(control(name), progress)
            else:
                ensure_trained(name, progress)
