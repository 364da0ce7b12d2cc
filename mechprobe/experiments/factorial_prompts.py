"""The prompts of a factorial: harmful and benign ones, each from a source of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechprobe.errors import PromptFileError
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
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        add_requests(rows, kind, params[kind])
    return rows


def add_requests(rows: list[dict[str, Any]], kind: str, given: Mapping[str, Any]) -> None:
    """Draw the prompts of one kind and put them behind those that are there.

    Raises:
        PromptFileError: As `draw_requests`.
        SpecError: As `draw_requests`.
    """
    from mechprobe.behavior.tasks import load_task

    name, label = KINDS[kind]
    task = load_task(name, given["source"], **given["options"])
    found = [item for item in task.items if item.label == label]
    chosen = {item.id for item in task.sample(given["prompts"]).items}
    drawn = [item for item in found if item.id in chosen][: given["prompts"]]
    if not drawn:
        raise PromptFileError(f"{given['source']}: no {label} prompts for `{kind}`")
    there = {row["id"] for row in rows}
    if twice := next((item.id for item in drawn if item.id in there), None):
        raise PromptFileError(f"the harmful and the benign prompts both have the id {twice!r}")
    rows += [
        {"set": kind, "id": i.id, "text": i.prompt, "label": label, "cluster": i.cluster}
        for i in drawn
    ]


def write_requests(task: Task) -> None:
    """The step `prompts/<model>`: every prompt of the factorial, rendered and tokenized."""
    params = task.step.params
    source = f"{params['harmful']['source']} and {params['benign']['source']}"
    render_rows(task, draw_requests(params), source, params["template"])
