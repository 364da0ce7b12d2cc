"""The prompts of a factorial: harmful and benign ones, each from a source of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechprobe.errors import MechprobeError, PromptFileError
from mechprobe.experiments.rendered import render_rows
from mechprobe.experiments.steps import Task

KINDS = {"harmful": ("refusal", "harmful"), "benign": ("over_refusal", "harmless")}
"""Of each kind of request: the task that reads its sources, and the label of its prompts."""


def draw_requests(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompts before they are rendered; a larger number only adds to a smaller one.

    Args:
        params: `harmful` and `benign`, each with `source`, `prompts` and `options`.

    Raises:
        PromptFileError: A source cannot be read, has none of the kind, or gives an id twice.
        SpecError: An option is unknown.
    """
    from mechprobe.behavior.tasks import load_task

    rows: list[dict[str, Any]] = []
    for kind, (name, label) in KINDS.items():
        given = params[kind]
        try:
            task = load_task(name, given["source"], **given["options"])
        except MechprobeError as error:
            raise type(error)(f"{kind}: {error}") from error
        found = [item for item in task.items if item.label == label]
        chosen = {item.id for item in task.sample(given["prompts"]).items}
        rows += [
            {"set": kind, "id": i.id, "text": i.prompt, "label": label, "cluster": i.cluster}
            for i in [item for item in found if item.id in chosen][: given["prompts"]]
        ]
        if not rows or rows[-1]["set"] != kind:
            raise PromptFileError(f"{given['source']}: no {label} prompts for `{kind}`")
    ids = [row["id"] for row in rows]
    twice = next((name for i, name in enumerate(ids) if name in ids[:i]), None)
    if twice is not None:
        raise PromptFileError(f"the harmful and the benign prompts both have the id {twice!r}")
    return rows


def write_requests(task: Task) -> None:
    """The step `prompts/<model>`: every prompt of the factorial, rendered and tokenized."""
    params = task.step.params
    source = f"{params['harmful']['source']} and {params['benign']['source']}"
    render_rows(task, draw_requests(params), source, params["template"])
