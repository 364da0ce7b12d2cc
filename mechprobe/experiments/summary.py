"""A cell in one file: what it is, what was measured, what failed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mechprobe.experiments.run_rows import refusal_clusters
from mechprobe.experiments.rundir import read_json, read_jsonl, write_json
from mechprobe.experiments.spec import PROBE_NAMES
from mechprobe.experiments.steps import Task


def refusal_summary(
    rows: list[dict[str, Any]], instrument: str, clusters: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Refusal rates by label, as one instrument reads them; others stay in the scores file.

    Args:
        rows: Scores, one per answer.
        instrument: Its name.
        clusters: By prompt id, what belongs together; without one a prompt is alone.
    """
    from mechprobe.behavior.rate import Rate

    summary: dict[str, Any] = {"instrument": instrument, "prompts": rows[0]["prompts"]}
    for label in ("harmful", "harmless"):
        mine = [row for row in rows if row["label"] == label]
        readable = [row for row in mine if not row["unread"]]
        together = [(clusters or {}).get(row["id"], row["id"]) for row in readable]
        said = [row[instrument] for row in readable]
        rate = Rate.among(said, together, unread=len(mine) - len(readable))
        summary[label] = asdict(rate)
    # of a broken text ("Sure. First pink, then I can't…") there is no truth to agree with
    decided = [r for r in rows if r.get("oracle") in ("refused", "complied") and not r["unread"]]
    if decided:
        same = [row[instrument] == (row["oracle"] == "refused") for row in decided]
        together = [(clusters or {}).get(row["id"], row["id"]) for row in decided]
        summary["oracle_agreement"] = asdict(Rate.among(same, together))
    return summary


def choice_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over the questions; where options tie, the question counts as not right."""
    from mechprobe.behavior.rate import Rate

    return {
        "instrument": "letter log-likelihood",
        "prompts": rows[0]["prompts"],
        "ties": sum(row["chosen"] is None for row in rows),
        "letter_mass": sum(row["letter_mass"] for row in rows) / len(rows),
        **asdict(Rate.of(sum(row["correct"] for row in rows), len(rows))),
    }


def summarise_cell(task: Task) -> None:
    """Write cell.json and probes.json from the files of the steps that succeeded."""
    from mechprobe.experiments.judge_steps import judged_summary, labelled_answers

    cell = task.step.params["cell"]
    outputs = [Path(path) for path in task.step.outputs]
    folder = outputs[0].parent

    def ok(name: str) -> bool:
        result = task.results.get(f"{folder.as_posix()}/{name}")
        return result is not None and result.ok

    def file(name: str) -> Path:
        return task.run / str(folder / name)

    content: dict[str, Any] = {**cell, "engine": task.step.params["engine"], "errors": {}}
    for name, result in task.results.items():
        if result.status == "failed":
            content["errors"][name.rpartition("/")[2]] = result.error
    if not content["errors"]:
        # what this cell needs failed elsewhere: say that once
        lost = next((r.error for r in task.results.values() if r.status == "skipped"), None)
        content["errors"] = {"needs": lost} if lost else {}
    content["checkpoint"] = read_json(file("checkpoint.json")) if ok("checkpoint") else None
    instrument = task.step.params["instrument"]
    content["refusal"] = (
        refusal_summary(
            read_jsonl(file("scores/refusal.jsonl")),
            instrument,
            refusal_clusters(task.run.prompts(cell["model"])),
        )
        if ok("score-refusal")
        else None
    )
    content["multiple_choice"] = (
        choice_summary(read_jsonl(file("scores/multiple_choice.jsonl")))
        if ok("multiple-choice")
        else None
    )
    content["tasks"] = {
        name: read_json(file(f"scores/{name}.json"))
        for name in task.step.params["more"]
        if ok(f"score-{name}")
    }
    content["judges"] = judged_summary(
        file(path) for name, path in task.step.params["judged"] if ok(name)
    )
    asked = content["refusal"]
    content["answers"] = asked and labelled_answers(
        (file(path) for name, path in task.step.params["judged"] if ok(name)),
        sum(asked[label]["n"] + asked[label]["unread"] for label in ("harmful", "harmless")),
    )
    content["not_measured"] = task.step.params["not_measured"]
    content["next_token"] = ok("next-token")
    content["kernel_gap"] = read_json(file("scores/kernel_gap.json")) if ok("kernel-gap") else None
    probes: dict[str, Any] = {}
    for name in PROBE_NAMES:
        if ok(name.replace("_", "-")):
            probes[name] = read_json(file(f"probes/{name}.json"))
    if ok("observe"):
        probes["forward_tokens"] = read_json(file("probes/forward_tokens.json"))
    write_json(task.run / task.step.outputs[0], plain(content))
    write_json(task.run / task.step.outputs[1], plain(probes))


def plain(value: Any) -> Any:
    """The same value with NaN and infinity as null, which is all that JSON has for them."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None) if value else value


def number(value: Any, digits: int = 6) -> float | None:
    """A float rounded for a table; None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits)
