"""`mechprobe agreement`: two judges side by side, and each against labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen
from mechprobe.errors import SpecError

if TYPE_CHECKING:
    from mechprobe.behavior.agreement import Agreement
    from mechprobe.experiments.agreeing import Comparison, Corrected
    from mechprobe.stats import Estimate

_WIDE = 118
"""Terminal columns from which everything has room."""


def agreement(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|FILE…",
            help="Run directories that were judged, and files of `mechprobe judge`.",
            show_default=False,
        ),
    ],
    first: Annotated[
        str | None, typer.Option(help="A judge; the first one there by default.")
    ] = None,
    second: Annotated[str | None, typer.Option(help="Another; the second one by default.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task to look at, may be repeated; all by default.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="A row that its model's others are compared with; may be repeated. Rows of a run "
            "directory have theirs.",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Points of refusal beyond which a row falls.")
    ] = 10.0,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|JUDGE",
            help="Right labels, to correct rates for a judge's error: JSONL with id and label, "
            "task, row and sample where there are any; or a judge that is there, such as oracle.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstraps.")] = 0,
    json: Json = False,
) -> None:
    """How far two judges agree, which verdicts would change, and what their errors do."""
    from mechprobe.experiments.agreeing import baselines_of, compare, find_judgements

    if not math.isfinite(threshold):
        raise SpecError(f"--threshold {threshold}: use a number of points")
    found = compare(
        find_judgements(sources, task or ()),
        first=first,
        second=second,
        baselines=baseline or baselines_of(sources),
        threshold=threshold,
        truth=truth,
        seed=seed,
    )
    screen = Screen.plain()
    screen.say_unchecked(*sources)
    if json:
        screen.document(found.as_dict())
        return
    screen.out.print(f"first: {found.first}\nsecond: {found.second}", soft_wrap=True)
    _say_agreement(screen, found.whole, found.groups)
    if found.verdicts:
        _say_verdicts(screen, found, threshold)
    for each in found.corrected:
        _say_corrected(screen, each)


def _say_agreement(
    screen: Screen, whole: Agreement, groups: Mapping[str, Mapping[str, Agreement]]
) -> None:
    from rich.table import Table

    wide = screen.out.width >= _WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold", min_width=14)
    titles = (
        "n",
        "missing",
        "agreement, %",
        "kappa, with UNCLEAR",
        "kappa, without",
        "refusal or not",
    )
    shown = range(6) if wide else (0, 2, 3, 5)
    for i in shown:
        table.add_column(titles[i], no_wrap=True)
    named = [("all", whole)]
    named += [(k or "-", v) for some in groups.values() if len(some) > 1 for k, v in some.items()]
    for name, found in named:
        share = found.share
        equal = "not measured"
        if share.rate is not None:
            equal = f"{100 * share.rate:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
        kappas = (found.kappa_all, found.kappa, found.kappa_refusal)
        cells = (str(found.n), str(found.missing), equal, *map(_short, kappas))
        table.add_row(name, *(cells[i] for i in shown))
    screen.out.print(table)
    if whole.missing:
        screen.out.print(f"{whole.missing} items were labelled by one of them alone, or by neither")


def _short(found: Estimate | None) -> str:
    if found is None:
        return "not measured"
    return f"{found.value:.3f} [{found.low:.2f}, {found.high:.2f}]"


def _say_verdicts(screen: Screen, found: Comparison, threshold: float) -> None:
    from rich.table import Table

    verdicts = found.verdicts
    changed = [one for one in verdicts if one.changes]
    read = sum(one.n > 0 for one in verdicts)
    screen.out.print(
        f"\n{len(changed)} of {read} rows would change their verdict (refusal falls by more than "
        f"{threshold:g} points)",
        soft_wrap=True,
    )
    table = Table("row", "n", "lost, first", "lost, second", "", box=None, pad_edge=False)
    for one in verdicts:
        notes = [*(["changes"] if one.changes else []), *(["boundary"] if one.boundary else [])]
        if not one.n:
            notes.append("UNCLEAR to a judge throughout")
        table.add_row(one.row, str(one.n), *map(str, one.lost), ", ".join(notes))
    screen.out.print(table)


def _say_corrected(screen: Screen, found: Corrected) -> None:
    from rich.table import Table

    from mechprobe.experiments.agreeing import OWN

    screen.out.print(
        f"\n{found.judge}: sensitivity {found.error.sensitivity}, specificity "
        f"{found.error.specificity}; {found.error.missing} labelled items without a judgement",
        soft_wrap=True,
    )
    table = Table("row", "refusal, uncorrected", "corrected", box=None, pad_edge=False)
    for row, rate in found.rows.items():
        shown = [str(one) if one else "not measured" for one in (rate.uncorrected, rate.corrected)]
        table.add_row(row or "-", *shown)
    screen.out.print(table)
    for row, rate in found.rows.items():
        if rate.pooled and rate.corrected:
            few = " and ".join(rate.pooled)
            screen.out.print(
                f"warning: {row or '-'}: corrected by the {few} over all rows, where the judge may "
                f"err otherwise; fewer than {OWN} labelled items of this row tell",
                soft_wrap=True,
            )
