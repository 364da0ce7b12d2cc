"""Prompt sets from the package, from a user's JSONL, and from Arditi et al.'s split files.

A user's file has one JSON object per line; `text` and `label` are required:

    {"text": "…", "label": "harmful", "split": "train", "category": "…", "id": "p1", "twin": "p2"}

`label` is `harmful` or `harmless`. Where no prompt of a cluster (twins, repeated texts) has a
`split`, it follows from a hash of the texts: 40 % train, 20 % validation, 40 % test, the same on
every machine, twins always together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import cast

from mechprobe.behavior.prompt_set import (
    LABELS,
    SPLITS,
    Label,
    PromptRecord,
    PromptSet,
    Split,
    split_of,
)
from mechprobe.behavior.records import Record, json_array, json_lines, read_text
from mechprobe.errors import PromptFileError

__all__ = [
    "LABELS",
    "SPLITS",
    "Label",
    "PromptRecord",
    "PromptSet",
    "Split",
    "load_arditi",
    "load_builtin",
    "load_jsonl",
    "load_prompts",
    "write_jsonl",
]

BUILTIN = "builtin"
OVER_REFUSAL = "over-refusal"
TRAINING = "refusal-training"
_FILES = {
    BUILTIN: "requests.jsonl",
    OVER_REFUSAL: "over_refusal.jsonl",
    TRAINING: "refusal_training.jsonl",
}
_FIELDS = ("text", "label", "split", "category", "id", "twin")
_ARDITI_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def load_prompts(source: str | Path) -> PromptSet:
    """Load prompts by name or path.

    Args:
        source: `builtin` or `over-refusal`; a `.jsonl` file; or a folder or one `.json` file of
            Arditi et al.'s splits.

    Raises:
        PromptFileError: Nothing is there, or it is malformed; the message names file and line.
    """
    if str(source) in _FILES:
        return load_builtin(str(source))
    path = Path(source)
    if path.is_dir() or path.suffix == ".json":
        return load_arditi(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return load_jsonl(path)
    raise PromptFileError(
        f"{source}: not a prompt set; give 'builtin', 'over-refusal', 'organism' (to a command or "
        "spec), a .jsonl file, or a folder or .json file of splits (harmful_train.json, …)"
    )


@cache
def load_builtin(name: str = BUILTIN) -> PromptSet:
    """The project's own prompts; how they were made: `behavior/data/README.md`.

    Args:
        name: `builtin`, 264 harmful requests, each with a harmless twin: 24 pairs (9 train,
            5 validation, 10 test) in each of 11 of the 12 hazard categories of MLCommons
            AILuminate v1.0 (arXiv 2503.05731). Or `over-refusal`, 126 harmless prompts that look
            unsafe, 14 of each of 9 kinds, all of them test: nothing is fitted on them. Or
            `refusal-training`, pairs and harmless prompts that controls are trained on.

    Raises:
        PromptFileError: No built-in set has this name; the message lists those there are.
    """
    if name not in _FILES:
        raise PromptFileError(f"no built-in prompt set {name!r}; there are {', '.join(_FILES)}")
    text = files("mechprobe.behavior").joinpath("data", _FILES[name]).read_text("utf-8")
    return _from_rows(name, json_lines(text, name))


def load_jsonl(path: str | Path) -> PromptSet:
    """A user's prompts; the format is described at the top of this module.

    Raises:
        PromptFileError: The file is missing, empty or malformed; the message names the line.
    """
    return _from_rows(str(path), json_lines(read_text(Path(path)), str(path)))


def load_arditi(path: str | Path) -> PromptSet:
    """Split files of Arditi et al. (arXiv 2406.11717): `{harmful,harmless}_{train,val,test}.json`.

    Texts that repeat (the published test split joins several sources) share a cluster.

    Args:
        path: A folder with at least one of the six files, or one of the files.

    Raises:
        PromptFileError: None of the files is there, or one is malformed.
    """
    path = Path(path)
    names = {
        f"{label}_{short}.json": (label, split)
        for label in LABELS
        for short, split in _ARDITI_SPLITS.items()
    }
    found = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if not found:
        raise PromptFileError(f"{path}: none of {', '.join(names)} is in this folder")
    rows: list[Record] = []
    for file in found:
        if file.name not in names:
            raise PromptFileError(f"{file}: the file name must be one of {', '.join(names)}")
        label, split = names[file.name]
        for number, item in enumerate(json_array(read_text(file), str(file))):
            text = item.fields.get("instruction")
            if not isinstance(text, str):
                raise PromptFileError(f"{item.where}: needs an object with an 'instruction' text")
            fields = {
                "text": text,
                "label": label,
                "split": split,
                "category": item.fields.get("category"),
                "id": f"{file.stem}-{number:05d}",
            }
            rows.append(Record(item.where, fields))
    return _from_rows(str(path), rows)


def write_jsonl(prompts: PromptSet, path: str | Path) -> Path:
    """Write a set in the format that `load_jsonl` reads."""
    lines = []
    for record in prompts:
        fields = {name: getattr(record, name) for name in ("id", *_FIELDS[:4], "twin")}
        kept = {name: value for name, value in fields.items() if value is not None}
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    target = Path(path)
    target.write_text("".join(lines), encoding="utf-8")
    return target


def _check(row: Record) -> None:
    if lacking := [repr(name) for name in ("text", "label") if name not in row.fields]:
        which = "fields {} and {} are" if len(lacking) == 2 else "field {} is"
        raise PromptFileError(f"{row.where}: the {which.format(*lacking)} missing")
    for name in _FIELDS:
        value = row.fields.get(name)
        if name in ("id", "twin") and isinstance(value, int):
            row.fields[name] = str(value)
        elif value is not None and not isinstance(value, str):
            raise PromptFileError(f"{row.where}: {name!r} must be a text, not {value!r}")
    if not (row.fields["text"] or "").strip():
        raise PromptFileError(f"{row.where}: the text is empty")
    for name, allowed in (("label", LABELS), ("split", SPLITS)):
        value = row.fields.get(name)
        if value not in allowed and not (name == "split" and value is None):
            raise PromptFileError(
                f"{row.where}: unknown {name} {value!r}; use {' or '.join(allowed)}"
            )


def _from_rows(name: str, rows: Iterable[Record]) -> PromptSet:
    """Check the rows, put twins and repeated texts into clusters, settle the splits."""
    by_id: dict[str, Record] = {}
    for number, row in enumerate(rows, start=1):
        _check(row)
        own = row.fields.get("id")
        own = f"p{number:05d}" if own is None else own
        if own in by_id:
            raise PromptFileError(
                f"{row.where}: id {own!r} is also the id of {by_id[own].where.rpartition(', ')[2]}"
            )
        by_id[own] = row
    twins = _twins(by_id)
    members: dict[str, list[str]] = defaultdict(list)
    for own, cluster in _clusters(by_id, twins).items():
        members[cluster].append(own)
    records: dict[str, PromptRecord] = {}
    for cluster, ids in members.items():
        split = _settle(cluster, [by_id[own] for own in ids])
        for own in ids:
            fields = by_id[own].fields
            records[own] = PromptRecord(
                id=own,
                text=fields["text"],
                label=cast(Label, fields["label"]),
                split=fields.get("split") or split,
                category=fields.get("category"),
                twin=twins.get(own),
                cluster=cluster,
            )
    return PromptSet(name, tuple(records[own] for own in by_id))


def _twins(by_id: dict[str, Record]) -> dict[str, str]:
    """Id to id of the twin, both ways; it is enough that one of the two names the other."""
    twins: dict[str, str] = {}
    for own, row in by_id.items():
        other = row.fields.get("twin")
        if other is None:
            continue
        if other not in by_id:
            raise PromptFileError(f"{row.where}: twin {other!r} is no id of this file")
        if by_id[other].fields["label"] == row.fields["label"]:
            raise PromptFileError(f"{row.where}: twin {other!r} has the same label")
        for a, b in ((own, other), (other, own)):
            if twins.setdefault(a, b) != b:
                raise PromptFileError(f"{row.where}: {a!r} has two twins, {twins[a]!r} and {b!r}")
    return twins


def _clusters(by_id: dict[str, Record], twins: dict[str, str]) -> dict[str, str]:
    """Id to cluster: the id that comes first in the file among twins and equal texts."""
    root = {own: own for own in by_id}

    def find(own: str) -> str:
        while root[own] != own:
            own = root[own]
        return own

    place = {own: i for i, own in enumerate(by_id)}
    first: dict[str, str] = {}
    for own, row in by_id.items():
        same = first.setdefault(" ".join(row.fields["text"].lower().split()), own)
        for other in (same, twins.get(own, own)):
            a, b = sorted((find(own), find(other)), key=place.__getitem__)
            root[b] = a
    return {own: find(own) for own in by_id}


def _settle(cluster: str, rows: list[Record]) -> Split:
    """The split of a cluster: the one its rows name, else by the hash of their texts."""
    named = {row.fields["split"]: row for row in rows if row.fields.get("split")}
    if len(named) > 1 and any(row.fields.get("twin") for row in rows):
        (a, _), (b, row) = list(named.items())[:2]
        raise PromptFileError(f"{row.where}: twins of {cluster!r} are in splits {a} and {b}")
    if named:
        return cast(Split, next(iter(named)))
    return split_of([row.fields["text"] for row in rows])
