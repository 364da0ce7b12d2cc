"""`mechprobe judge`: label the answers of a run, or of any file of generations."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen, quiet
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.behavior.judges import Load
    from mechprobe.experiments.judging import Outcome, Plan

_NAMES = "rules, rules:INSTRUMENT, oracle, openai:MODEL@URL or hf:CLASSIFIER"


def judge(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|FILE…", help="Run directories, or JSONL files.", show_default=False
        ),
    ],
    judges: Annotated[
        list[str],
        typer.Option("--judge", "-j", help=f"{_NAMES}; may be repeated.", show_default=False),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task to judge, may be repeated; of a run, its requests by default."),
    ] = None,
    second: Annotated[
        str | None, typer.Option(help="A judge that reads a sample, drawn beforehand.")
    ] = None,
    per_stratum: Annotated[
        int, typer.Option(min=1, help="Items of each task, kind of request and row it reads.")
    ] = 50,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE")] = Path("judgements.jsonl"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count calls and tokens; send nothing.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for one attempt.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="At getting a reply.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 8,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="At most so many are sent.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a judge's reply.")] = 256,
    temperature: Annotated[
        str, typer.Option(metavar="NUMBER|server", help="Of a judge; server leaves it alone.")
    ] = "0",
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where paid replies are kept.")
    ] = None,
    keep_replies: Annotated[
        bool, typer.Option("--keep-replies", help="Keep the judge's words; they may quote answers.")
    ] = False,
    json: Json = False,
) -> None:
    """Label answers: full refusal, partial refusal, compliance, unclear.

    Interrupted or repeated, it pays for nothing twice.
    """
    from mechprobe.behavior.judges import Calls
    from mechprobe.experiments.judging import Plan, estimate, find_exchanges, judge_all
    from mechprobe.preflight import require_writable

    calls = Calls(
        timeout=timeout,
        attempts=attempts,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        max_tokens=max_tokens,
        temperature=_temperature(temperature),
    )
    with quiet() as screen:
        require_writable(out, folder=False)
        exchanges = find_exchanges(sources, task or ())
        screen.say_unchecked(*sources)
        plan = Plan(exchanges, tuple(judges), second, per_stratum, seed, calls, cache, keep_replies)
        loads = estimate(plan, asks=not dry_run)
        if dry_run:
            _say_loads(screen, loads, json)
            return
        with Bar(screen.err, "judging") as bar:
            outcome = judge_all(plan, out, lambda name: bar)
        if json:
            screen.document(_document(plan, out, loads, outcome))
        else:
            _say_outcome(screen, out, outcome)
    if not outcome.complete:
        raise typer.Exit(ExitCode.NOT_MEASURED)


def _temperature(text: str) -> float | None:
    if text == "server":
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise SpecError(f"--temperature {text}: use a number, or server") from error
    if not 0 <= value < math.inf:
        raise SpecError(f"--temperature {text}: use a number from 0 on, or server")
    return value


def _say_loads(screen: Screen, loads: list[tuple[str, Load]], json: bool) -> None:
    if json:
        screen.document({"dry_run": True, "judges": {name: asdict(load) for name, load in loads}})
        return
    for name, load in loads:
        screen.out.print(f"{name}: {load.items} items, {load.finished} finished", soft_wrap=True)
        if load.calls:
            screen.out.print(
                f"  {load.calls} calls (one for equal answers), about {load.prompt_tokens} prompt "
                f"tokens and at most {load.completion_tokens} completion tokens; up to "
                f"{load.tries} times that where a reply is not understood",
                soft_wrap=True,
            )
    screen.out.print("Nothing was sent.")


def _say_outcome(screen: Screen, out: Path, outcome: Outcome) -> None:
    from rich.table import Table

    from mechprobe.experiments.judging import refusal_rates

    for each in outcome.judged:
        counts = Counter(one.label or one.status for one in each.judgements)
        said = ", ".join(f"{n} {label}" for label, n in sorted(counts.items()))
        used = f"; {each.calls} calls" if each.calls else ""
        screen.out.print(f"{each.judge}: {said}{used}", soft_wrap=True)
        problem = next((one.problem for one in each.judgements if one.problem), "")
        if problem:
            screen.err.print(f"mechprobe: {problem}; run it again", style="red", soft_wrap=True)
    if outcome.ties is not None:
        screen.out.print(f"majority: {outcome.ties} ties, which are UNCLEAR")
    table = Table(box=None, pad_edge=False)
    for title in ("judge", "row", "task", "requests"):
        table.add_column(title, overflow="fold")
    table.add_column("refusal rate", no_wrap=True)
    table.add_column("left out")
    for group, rate in sorted(refusal_rates(outcome.judgements).items()):
        table.add_row(*(part or "-" for part in group), str(rate), rate.left_out)
    screen.out.print(table)
    screen.out.print(f"Wrote {out}", soft_wrap=True)


def _document(
    plan: Plan, out: Path, loads: list[tuple[str, Load]], outcome: Outcome
) -> dict[str, Any]:
    from mechprobe.experiments.judging import refusal_rates

    return {
        "out": str(out),
        "items": len(plan.exchanges),
        "sample": len(plan.sample),
        "complete": outcome.complete,
        "ties": outcome.ties,
        "judges": {
            each.judge: {
                "finished_before": load.finished,
                "calls": each.calls,
                "prompt_tokens": each.prompt_tokens,
                "completion_tokens": each.completion_tokens,
                "labels": dict(Counter(one.label for one in each.judgements if one.label)),
                "unparsed": each.count("unparsed"),
                "errors": each.count("error"),
            }
            for each, (_, load) in zip(outcome.judged, loads, strict=True)
        },
        "rates": [
            {
                "judge": group.judge,
                "row": group.row,
                "task": group.task,
                "requests": group.request,
                **asdict(rate),
            }
            for group, rate in sorted(refusal_rates(outcome.judgements).items())
        ],
    }
