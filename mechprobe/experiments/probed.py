"""The probe steps of a cell: one observational pass, then each probe, beside the baseline's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.loading import held
from mechprobe.experiments.rendered import LABELS, SPLITS, encoded_rows, prompt_rows
from mechprobe.experiments.rundir import explained, read_jsonl
from mechprobe.experiments.steps import Task

if TYPE_CHECKING:
    from mechprobe.probes.battery import Setup
    from mechprobe.probes.folder import ProbeFolder
    from mechprobe.probes.labelled import OptionScores
    from mechprobe.probes.refusals import Refusals


def observe(task: Task) -> None:
    """Run every prompt set through the dense kernel once; a baseline finds its refusal tokens."""
    from mechprobe.probes import battery
    from mechprobe.probes.refusal_presets import named_tokens

    setup, folder, baseline = _work(task)
    checkpoint = held(task, "dense").checkpoint
    if names := task.step.params["probes"].get("refusal_tokens"):
        setup = replace(setup, tokens=named_tokens(checkpoint.tokenizer, names))
    with explained(folder.path):
        battery.observe_cell(
            checkpoint, setup, folder, is_baseline=baseline is None, progress=task.progress
        )
        if baseline is None and not setup.study:
            battery.choose_tokens(checkpoint, setup, folder, task.progress)


def entropy(task: Task) -> None:
    """The first generated position, paired with the baseline's."""
    from mechprobe.probes import battery

    setup, folder, baseline = _work(task)
    with explained(folder.path):
        battery.probe_entropy(setup, folder, baseline)


def refusal_direction(task: Task) -> None:
    """Selected on a baseline, compared at that place on other cells, steered by generation."""
    from mechprobe.probes import battery

    setup, folder, baseline = _work(task)
    with explained(folder.path):
        checkpoint = held(task, "dense").checkpoint
        battery.probe_direction(checkpoint, setup, folder, baseline, task.progress)


def calibration(task: Task) -> None:
    """Confidence against labels, and refusal probability against what the native engine wrote."""
    from mechprobe.probes import battery

    setup, folder, baseline = _work(task)
    with explained(folder.path):
        _adopt_answers(task, folder)
        battery.probe_calibration(setup, folder, baseline)


def safety_neurons(task: Task) -> None:
    """Error of the safety neurons, and what patching them back returns."""
    from mechprobe.probes import battery

    setup, folder, baseline = _work(task)
    with explained(folder.path):
        checkpoint = held(task, "dense").checkpoint
        battery.probe_neurons(checkpoint, setup, folder, baseline, task.progress)


def _work(task: Task) -> tuple[Setup, ProbeFolder, ProbeFolder | None]:
    from mechprobe.probes.battery import Setup
    from mechprobe.probes.fitting import twin_rows
    from mechprobe.probes.folder import ProbeFolder

    params: dict[str, Any] = dict(task.step.params)
    asked = params["probes"]
    rows = {
        f"{name}/{label}": prompt_rows(task.run, params["cell"]["model"], name, label)
        for name in SPLITS
        for label in LABELS
    }
    setup = Setup(
        prompts={name: encoded_rows(found) for name, found in rows.items()},
        probes=tuple(asked["run"]),
        study=asked["study"],
        twins=twin_rows(*([SimpleNamespace(**row) for row in rows[f"fit/{x}"]] for x in LABELS)),
        clusters={name: [row["cluster"] for row in found] for name, found in rows.items()},
        place=None if asked["layer"] is None else (-1, asked["layer"]),
        causal=asked["causal"],
        instrument=params["instrument"],
        max_new_tokens=asked["max_new_tokens"],
    )
    base = params["baseline_folder"]
    cell = task.step.name.rpartition("/")[0]
    return (
        setup,
        ProbeFolder(task.run / cell / "probes"),
        ProbeFolder(task.run / base / "probes") if base else None,
    )


def _adopt_answers(task: Task, folder: ProbeFolder) -> None:
    """What the native engine answered, where the spec asked for it: the probe generates nothing."""
    cell = task.step.name.rpartition("/")[0]
    done = {name for name, result in task.results.items() if result.ok}
    if f"{cell}/score-refusal" in done:
        found = {
            f"evaluate/{label}": refusals
            for label in LABELS
            if (refusals := _refusals(task, cell, label)) is not None
        }
        if len(found) == len(LABELS):
            folder.save_refusals(found)
    if f"{cell}/multiple-choice" in done:
        folder.save_questions(_options(task, cell))


def _refusals(task: Task, cell: str, label: str) -> Refusals | None:
    from mechprobe.probes.refusals import Refusals

    wanted = prompt_rows(task.run, task.step.params["cell"]["model"], "evaluate", label)
    written = {r["id"]: r for r in read_jsonl(task.run / cell / "generations" / "refusal.jsonl")}
    scored = {r["id"]: r for r in read_jsonl(task.run / cell / "scores" / "refusal.jsonl")}
    if any(row["id"] not in scored for row in wanted):
        return None  # fewer answers than the probes read prompts
    name = task.step.params["instrument"]
    scores = [scored[row["id"]] for row in wanted]
    answers = [written[row["id"]] for row in wanted]
    return Refusals(
        refused=tuple(None if row["unread"] else bool(row[name]) for row in scores),
        first_ids=tuple(
            a["ids"][0] if a["ids"] and a.get("answer_start", 0) == 0 else None for a in answers
        ),
        instrument=name,
        prompts=encoded_rows(wanted).digest,
    )


def _options(task: Task, cell: str) -> OptionScores:
    import numpy as np

    from mechprobe.probes.labelled import OptionScores

    rows = read_jsonl(task.run / cell / "scores" / "multiple_choice.jsonl")
    scores = np.full((len(rows), max(len(row["logprobs"]) for row in rows)), -np.inf)
    for i, row in enumerate(rows):
        scores[i, : len(row["logprobs"])] = row["logprobs"]
    return OptionScores(scores, np.array([row["answer"] for row in rows]), rows[0]["prompts"])
