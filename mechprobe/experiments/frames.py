"""A run directory as DataFrames: what every cell answered, prompt by prompt, and its tables.

Reads finished files alone: what a cell has not measured is not in the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.analysis.rows import REFUSAL
from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.run_rows import (
    AnswerRow,
    ChoiceRow,
    RefusalRow,
    TaskRow,
    flags,
    read_facts,
    read_typed,
    refusal_clusters,
)
from mechprobe.experiments.rundir import RunDirectory, explained

if TYPE_CHECKING:
    import pandas as pd

WHO = ("model", "family", "cell", "precision", "engine", "baseline", "reference")
_ROW = ("model", "family", "precision", "engine", "baseline")
OUTCOME = ("measure", "instrument", "prompt", "cluster", "value")
HARMLESS = "harmless_refusal"
ACCURACY = "accuracy"
_LABELS = {"harmful": REFUSAL, "harmless": HARMLESS}
_LETTERS = "letters"
_ORACLE = {"refused": 1.0, "partly": 1.0, "complied": 0.0}
"""What the oracle of the organisms calls a refusal; what is unclear to it is in no rate."""
_VALUES = {
    "jailbreak": ("refusal_rate", "wrapper"),
    "bias": ("accuracy", "context"),
    "quality": ("quality", None),
    "multiple_choice": ("accuracy", None),
    "refusal": ("refusal_rate", "label"),
    "over_refusal": ("over_refusal_rate", "label"),
    "truthfulness": ("overlap_study", None),
}
"""By kind of task: the measure that the mean of its rows' values is, and what groups them."""
_LIKELIHOOD = ("mc1", "mc2")
"""Instruments of truthfulness that read no text, and name their own measure."""
Outcome = tuple[str, str, str, str, float]


@dataclass(frozen=True)
class RunFrames:
    """A run as tables; see docs/analysis.md for the columns."""

    outcomes: pd.DataFrame
    """One line per cell, measure, instrument and prompt, references among them."""
    matrix: pd.DataFrame
    """matrix.csv."""
    references: pd.DataFrame
    """references.csv."""
    templates: pd.DataFrame
    """One line per cell: how its refusals of harmful prompts are worded."""
    gaps: pd.DataFrame
    """gaps.csv."""
    absent: dict[str, str]
    """By task: why no cell has measured it."""


def read_frames(path: Path, instrument: str | None = None) -> RunFrames:
    """Read a finished run.

    Args:
        path: The run directory.
        instrument: Of refusal, which answers are refusals for `templates`; by default that of
            each cell's `tasks.refusal`.

    Raises:
        RunDirectoryError: It is no run directory, or its tables are not written yet.
    """
    import pandas as pd

    run = RunDirectory(path)
    matrix, references, gaps = (
        read_table(run / name) for name in ("matrix.csv", "references.csv", "gaps.csv")
    )
    parts, templates = [], []
    absent: dict[str, str] = {}
    clusters: dict[str, dict[str, str]] = {}
    there = {file.parent for file in path.glob("cells/*/*/cell.json")}
    for frame, reference in ((matrix, False), (references, True)):
        if missing := [name for name in _ROW if name not in frame]:
            said = f"{path}: damaged (a table lacks {missing[0]})"
            raise RunDirectoryError(f"{said}; run the same command again")
        for row in frame.to_dict("records"):
            who = _who(row, reference)
            folder = run.cell(who["model"], who["cell"])
            known = read_facts(folder) if folder in there and folder.is_dir() else {}
            if who["model"] not in clusters:
                clusters[who["model"]] = refusal_clusters(run.prompts(who["model"]))
            absent |= known.get("not_measured") or {}
            found = list(_outcomes(folder, known, clusters[who["model"]]))
            part = pd.DataFrame(found, columns=list(OUTCOME))
            parts.append(part.assign(**who)[[*WHO, *OUTCOME]])
            if known.get("refusal"):
                named = instrument or known["refusal"]["instrument"]
                templates.append(who | _template(folder, named))
    columns = [*WHO, *OUTCOME]
    outcomes = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return RunFrames(outcomes, matrix, references, pd.DataFrame(templates), gaps, absent)


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run, such as matrix.csv; an empty name is an empty string, not NaN.

    Raises:
        RunDirectoryError: It is not there or cannot be read.
    """
    import pandas as pd

    if not path.exists():
        raise RunDirectoryError(
            f"{path}: not there; is this a run directory, and has the run come to its tables?"
        )
    text = dict.fromkeys(("model", "precision", "engine", "baseline", "error", "family"), str)
    try:
        with explained(path):
            frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise RunDirectoryError(f"{path}: damaged; run the same command again") from error
    there = [name for name in text if name in frame]
    return frame.assign(**{name: frame[name].fillna("") for name in there}).copy()


def _who(row: Mapping[Any, Any], reference: bool) -> dict[str, Any]:
    return {
        "model": row["model"],
        "family": row["family"],
        "cell": f"{row['precision']}@{row['engine']}",
        "precision": row["precision"],
        "engine": row["engine"],
        "baseline": row["baseline"],
        "reference": reference,
    }


def _outcomes(
    folder: Path, known: Mapping[str, Any], clusters: Mapping[str, str]
) -> Iterator[Outcome]:
    if known.get("refusal"):
        yield from _refusals(folder, known, clusters)
    if known.get("multiple_choice"):
        for row in read_typed(folder / "scores" / "multiple_choice.jsonl", ChoiceRow):
            yield ACCURACY, _LETTERS, row["id"], row["id"], float(row["correct"])
    for label, summary in (known.get("tasks") or {}).items():
        rows = read_typed(folder / "scores" / f"{label}.jsonl", TaskRow)
        yield from _task(label, summary, rows)


def _refusals(
    folder: Path, known: Mapping[str, Any], clusters: Mapping[str, str]
) -> Iterator[Outcome]:
    file = folder / "scores" / "refusal.jsonl"
    names: dict[str, bool] = {}
    for row in read_typed(file, RefusalRow):
        who = (row["id"], clusters.get(row["id"], row["id"]))
        measure = _LABELS[row["label"]]
        said = flags(file, row)
        names |= said
        for name, refused in said.items():
            yield measure, name, *who, float("nan") if row["unread"] else float(refused)
        if "oracle" in row:
            yield measure, "oracle", *who, _ORACLE.get(str(row["oracle"]), float("nan"))
    for judge, tasks in (known.get("judges") or {}).items():
        if "refusal" in tasks and judge not in (*names, "oracle"):
            yield from _judged(folder, judge, clusters)


def _judged(folder: Path, judge: str, clusters: Mapping[str, str]) -> Iterator[Outcome]:
    """A judge's labels; an answer without one, or an UNCLEAR one, could not be read."""
    from mechprobe.behavior.judges import read_judgements, refuses
    from mechprobe.experiments.plan_judges import judged_file

    for one in read_judgements(folder / judged_file(judge, "refusal")):
        said = refuses(one.label)
        value = float("nan") if said is None else float(said)
        if one.request in _LABELS:
            yield _LABELS[one.request], judge, one.id, clusters.get(one.id, one.id), value


def _task(
    label: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Outcome]:
    kind = summary["task"].partition("/")[0]
    if kind not in _VALUES:
        raise RunDirectoryError(f"{label}: a task of the kind {kind!r}, which has no measure here")
    measure, group = _VALUES[kind]
    written = kind == "truthfulness" and summary["instrument"] not in _LIKELIHOOD
    if kind == "truthfulness" and not written:
        measure = summary["instrument"]
    for row in rows:
        of = f"_{row[group]}" if group and row.get(group) else ""
        name = f"{label}_{measure}{of}".replace(" ", "_")
        value = float("nan") if row["value"] is None else float(row["value"])
        prompt = row["item"] if not row["sample"] else f"{row['item']}#{row['sample']}"
        yield name, row["instrument"], prompt, row["cluster"], value
        if written:
            told = float("nan") if row["value"] is None else float(row.get("outcome") == "truthful")
            yield f"{label}_truthful_rate", row["instrument"], prompt, row["cluster"], told


def _template(folder: Path, instrument: str) -> dict[str, Any]:
    """How the cell words its refusals of harmful prompts."""
    from mechprobe.analysis.templates import template_features
    from mechprobe.models.thoughts import answer_of

    file = folder / "scores" / "refusal.jsonl"
    readable = {
        row["id"]: flags(file, row).get(instrument)
        for row in read_typed(file, RefusalRow)
        if row["label"] == "harmful" and not row["unread"]
    }
    answers = [
        row
        for row in read_typed(folder / "generations" / "refusal.jsonl", AnswerRow)
        if readable.get(row["id"])
    ]
    features = template_features(
        [answer_of(a["text"]) or "" for a in answers],
        [len(a["ids"]) - (a.get("answer_start") or 0) for a in answers],
    )
    return {"n_prompts": len(readable), **features.as_dict()}
