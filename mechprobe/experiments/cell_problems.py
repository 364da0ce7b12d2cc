"""What keeps cells from being measured, by the headers of their checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from mechprobe.errors import CheckpointError, MissingExtraError
from mechprobe.experiments import made
from mechprobe.experiments.acquire import unmade_sources
from mechprobe.experiments.loading import load_tokenizer
from mechprobe.experiments.plan_cells import PlannedCell, plan_cells
from mechprobe.experiments.rendered import template_digest
from mechprobe.experiments.sources import is_away
from mechprobe.experiments.spec import ModelSpec, Spec
from mechprobe.models.export import TARGETS as EXPORTS
from mechprobe.models.gguf_names import architecture_of_model
from mechprobe.models.load import require_device
from mechprobe.models.makeable import TARGETS, require_makeable
from mechprobe.models.precision import check_expected
from mechprobe.models.remote import require_there
from mechprobe.models.source import Source, resolve_source
from mechprobe.preflight import (
    Header,
    Problems,
    read_header,
    require_dense,
    require_layer,
    require_same_model,
    require_same_vocabulary,
)

Find = Callable[[str, str | None, str], Source | None]
"""From a source, its revision and who needs it to where it lies; None where that is unknown."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What is asked of every cell of a matrix."""

    dense: bool = False
    """A graph to look into."""
    logits: bool = False
    """Rows of logits as long as the baseline's."""
    layer: int | None = None
    refusal_tokens: tuple[str, ...] = ()
    """Of `probes.refusal_tokens`, for each model's tokenizer."""
    here: bool = True
    """Cells run on this machine, with its devices and quantizers."""


def add_cell_problems(
    matrix: Spec, needs: Needs, problems: Problems, *, local_only: bool = False
) -> None:
    """Check every cell and reference of a matrix.

    Args:
        matrix: Models and cells.
        needs: What is asked of them.
        problems: Takes what is found.
        local_only: Download nothing; of what is still on the hub it is asked only whether it is
            there, what is untrained is not looked at.
    """
    waiting, ask_once = set(unmade_sources(matrix)), cache(require_there)

    def find(text: str, revision: str | None, where: str) -> Source | None:
        if text in waiting:
            return None
        try:
            if local_only and is_away(text, revision):
                ask_once(text, revision)
                return None
            return resolve_source(text, revision=revision, local_only=local_only)
        except CheckpointError as error:
            problems.add("source", where, error)
            return None

    for i, model in enumerate(matrix.models):
        with problems.of("device"), matrix.field("models", i, "device"):
            if model.device != "cpu" and needs.here:
                require_device(model.device)
        with problems.of("prompts"), matrix.field("models", i, "chat_template"):
            template_digest(model.chat_template)
        planned = plan_cells(matrix, model, local_only=local_only)
        _check_model(model, planned, needs, problems, find)


def _check_model(
    model: ModelSpec, planned: list[PlannedCell], needs: Needs, problems: Problems, find: Find
) -> None:
    renderer = find(model.tokenizer or model.source, model.revision, f"prompts/{model.name}")
    if renderer is not None and needs.refusal_tokens:
        from mechprobe.probes.refusal_presets import named_tokens

        with problems.of("vocabulary", model.name):
            tokenizer = load_tokenizer(renderer.text, model.revision)
            for name in needs.refusal_tokens:
                with problems.of("vocabulary", model.name):
                    named_tokens(tokenizer, [name])
    parent: Header | None = None
    if renderer is not None and model.tokenizer is None:
        with contextlib.suppress(CheckpointError):  # a folder may hold a tokenizer alone
            parent = read_header(renderer)
    headers: dict[str, Header] = {}
    for one in planned:
        source = find(one.cell.source, one.cell.revision, _name(one))
        if parent is not None and source is not None and source.path == parent.source.path:
            headers[one.cell.key] = parent
        elif source is not None:
            with problems.of("header", _name(one)):
                headers[one.cell.key] = read_header(source)
    for one in planned:
        header = headers.get(one.cell.key)
        if header is None:
            continue
        _check_cell(one, header, needs, problems)
        baseline = headers.get(one.cell.baseline_key) if one.cell.baseline_key else parent
        with problems.of("same model", _name(one)):
            if baseline is not None:
                logits = needs.logits and one.cell.baseline_key is not None
                require_same_model(header.shape, baseline.shape, logits=logits)
            with problems.of("vocabulary", _name(one)):
                if renderer is not None:
                    require_same_vocabulary(header, renderer)


def _name(one: PlannedCell) -> str:
    return f"{one.cell.model}/{one.cell.key}"


def _check_cell(one: PlannedCell, header: Header, needs: Needs, problems: Problems) -> None:
    """Check what concerns a cell alone."""
    recipe = one.params["recipe"]
    if one.to is None:
        with problems.of("precision", _name(one)):
            check_expected(header.quant, one.cell.precision, header.source.text)
    elif recipe is None or not made.entry(recipe).exists():
        others = () if needs.here else (MissingExtraError,)
        with problems.of("quantizer", _name(one)), contextlib.suppress(*others):
            require_makeable(header.source, one.to)
    if needs.dense:
        with problems.of("architecture", _name(one)):
            require_dense(header)
            if header.gguf is None and one.to is not None and one.to not in (*TARGETS, *EXPORTS):
                architecture_of_model(header.shape.architecture)
    if needs.layer is not None:
        with problems.of("layer", _name(one)):
            require_layer(header, needs.layer)
