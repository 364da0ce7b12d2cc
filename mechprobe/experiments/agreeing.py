"""Two judges side by side, from what `mechprobe judge` wrote or what a run keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mechprobe.behavior.agreement import (
    Agreement,
    RowVerdict,
    agreement,
    agreement_by,
    harmful_of,
    paired,
    row_verdicts,
)
from mechprobe.behavior.judge_error import (
    CorrectedRate,
    ErrorRates,
    Key,
    corrected_rate,
    judge_error,
)
from mechprobe.behavior.judges import (
    REFUSALS,
    Judgement,
    read_judgements,
    read_truth,
    refuses,
)
from mechprobe.behavior.judges.judging import reject_mixed
from mechprobe.behavior.refusal import RefusalLabel
from mechprobe.errors import JudgeError, PromptFileError
from mechprobe.experiments.integrity import require_intact
from mechprobe.experiments.plan_judges import judged_file
from mechprobe.experiments.run_rows import read_facts

OWN = 20
"""Labelled refusals of a row, or others, of which its own sensitivity, or specificity, is taken."""


@dataclass(frozen=True, slots=True)
class CorrectedRow(CorrectedRate):
    """A row's refusal rate, and the error that it was corrected for."""

    error: ErrorRates
    pooled: tuple[str, ...]
    """What of that error is of all rows together: fewer than `OWN` items of this row tell."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A judge's own error, and what it does to the refusal rate of each row."""

    judge: str
    error: ErrorRates
    """Of all rows together, over the requests that the rates are of."""
    rows: Mapping[str, CorrectedRow]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two judges say of the same answers."""

    first: str
    second: str
    whole: Agreement
    groups: Mapping[str, Mapping[str, Agreement]]
    """By `task` and by `row`."""
    verdicts: tuple[RowVerdict, ...]
    corrected: tuple[Corrected, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        groups = {
            kind: {k: asdict(v) for k, v in some.items()} for kind, some in self.groups.items()
        }
        return {
            "first": self.first,
            "second": self.second,
            "all": asdict(self.whole),
            **groups,
            "verdicts": [asdict(one) | {"changes": one.changes} for one in self.verdicts],
            "corrected": [asdict(one) for one in self.corrected],
        }


def find_judgements(sources: Sequence[Path], tasks: Sequence[str] = ()) -> list[Judgement]:
    """Judgements of files and of run directories, each once.

    Args:
        sources: Run directories, and files that `mechprobe judge` wrote.
        tasks: The tasks to take; all by default.

    Raises:
        PromptFileError: A source does not exist, holds no judgements, or is malformed.
        RunDirectoryError: A file of a run is not as the run wrote it.
        JudgeError: One judge's labels come from two versions of it, or contradict each other.
    """
    found: dict[tuple[Any, ...], Judgement] = {}
    for source in sources:
        require_intact(source)
        for file in _files(source):
            for one in read_judgements(file):
                key = (one.judge, *one.key)
                if found.setdefault(key, one).label != one.label:
                    raise JudgeError(
                        f"{file}: {one.judge} labelled {one.row} {one.id} otherwise in another "
                        "file; name one of the two"
                    )
    kept = [one for one in found.values() if not tasks or one.task in tasks]
    if not kept:
        there = ", ".join(sorted({one.task for one in found.values()}))
        raise PromptFileError(f"no judgements of {', '.join(tasks)}; there are those of {there}")
    reject_mixed(kept)
    return kept


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = [
        cell.parent / judged_file(judge, task)
        for cell in sorted(source.glob("cells/*/*/cell.json"))
        for judge, tasks in (read_facts(cell.parent).get("judges") or {}).items()
        for task in tasks
    ]
    if not files:
        raise PromptFileError(
            f"{source}: keeps no judgements; name judges in its spec (tasks.judges), or run "
            f"`mechprobe judge {source}` and name the file that it writes"
        )
    return files


def baselines_of(sources: Sequence[Path]) -> dict[str, str]:
    """What the rows of run directories are held against there, by row."""
    found = {}
    for source in sources:
        for file in sorted(source.glob("cells/*/*/cell.json")):
            cell = read_facts(file.parent)
            if cell.get("baseline"):
                key = cell["baseline"]
                key = key if "@" in key else f"{key}@{file.parent.name.partition('@')[2]}"
                model = file.parents[1].name
                found[f"{model}/{file.parent.name}"] = f"{model}/{key}"
    return found


def compare(
    judgements: Sequence[Judgement],
    *,
    first: str | None = None,
    second: str | None = None,
    baselines: Sequence[str] | Mapping[str, str] = (),
    threshold: float = 10.0,
    truth: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Set two judges side by side.

    Args:
        judgements: Of two judges or more.
        first: A judge; the first one there by default.
        second: Another; the second one there by default.
        baselines: Rows that others are compared with; or the baseline of each row.
        threshold: Points of refusal beyond which a row falls.
        truth: A file of right labels, or a judge that is right by construction.
        seed: Of the bootstraps.

    Raises:
        JudgeError: There are no two judges of these names, they share no item, or a baseline is
            no row.
        PromptFileError: The file of right labels is malformed.
    """
    names = list(dict.fromkeys(one.judge for one in judgements))
    one, two = _chosen(names, first, second)
    by_name = {name: [each for each in judgements if each.judge == name] for name in names}
    pairs = paired(by_name[one], by_name[two])
    if isinstance(baselines, Mapping):  # a baseline that failed in its run is no row
        rows = {item.row for item, _ in pairs}
        baselines = {row: of for row, of in baselines.items() if of in rows}
    return Comparison(
        first=one,
        second=two,
        whole=agreement(pairs),
        groups={
            "task": agreement_by(pairs, lambda item: item.task),
            "row": agreement_by(pairs, lambda item: item.row),
        },
        verdicts=tuple(row_verdicts(pairs, baselines, threshold=threshold)),
        corrected=tuple(_corrected(name, by_name, truth, seed) for name in (one, two) if truth),
    )


def _chosen(names: Sequence[str], first: str | None, second: str | None) -> tuple[str, str]:
    for name in (first, second):
        if name is not None and name not in names:
            raise JudgeError(f"judge {name!r} is not in the files; there are {', '.join(names)}")
    if first is not None and first == second:
        raise JudgeError(f"judge {first} is named twice; the second is another one")
    one = first or next((name for name in names if name != second), "")
    two = second or next((name for name in names if name != one), "")
    if not one or not two or one == two:
        raise JudgeError(f"two judges are needed; the files hold {', '.join(names)}")
    return one, two


def _corrected(
    name: str, by_name: Mapping[str, Sequence[Judgement]], truth: str, seed: int
) -> Corrected:
    if truth in by_name:
        labels = {one.key: one.label for one in by_name[truth] if one.label is not None}
    elif Path(truth).exists():
        labels = read_truth(Path(truth))
    else:
        raise PromptFileError(f"{truth}: no such file, and no judge of these: {', '.join(by_name)}")
    whole = judge_error(by_name[name], labels)
    judged = [one for one in harmful_of(by_name[name]) if refuses(one.label) is not None]
    pooled = _filled(_error_on(judged, labels), whole, 1)
    rows: dict[str, list[Judgement]] = {}
    for one in judged:
        rows.setdefault(one.row, []).append(one)
    corrected = {}
    for row, some in sorted(rows.items()):
        own = _error_on(some, labels)
        error = _filled(own, pooled, OWN)
        rate = corrected_rate(
            [one.label in REFUSALS for one in some],
            error,
            clusters=[one.cluster for one in some],
            seed=seed,
        )
        few = tuple(name for name in _ERRORS if getattr(own, name).n < OWN)
        corrected[row] = CorrectedRow(rate.uncorrected, rate.corrected, error, few)
    return Corrected(name, replace(pooled, missing=whole.missing), corrected)


_ERRORS = ("sensitivity", "specificity")


def _error_on(some: Sequence[Judgement], labels: Mapping[Key, RefusalLabel]) -> ErrorRates:
    """The error on these items, as far as they are labelled."""
    return judge_error(some, {one.key: labels[one.key] for one in some if one.key in labels})


def _filled(own: ErrorRates, others: ErrorRates, needed: int) -> ErrorRates:
    """What is measured on enough items, and the rest from elsewhere."""
    rates = {
        name: getattr(own if getattr(own, name).n >= needed else others, name) for name in _ERRORS
    }
    return replace(own, **rates)
