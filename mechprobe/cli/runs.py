"""`mechprobe demo` and `mechprobe run`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.options import Json, Threads
from mechprobe.cli.specs import problems_shown, right_spec
from mechprobe.cli.terminal import Screen, quiet
from mechprobe.exit_codes import ExitCode
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.experiments.running import Finished
    from mechprobe.experiments.spec import Spec
    from mechprobe.experiments.steps import Display, StepEngine


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The run directory.")
    ] = Path("runs/demo"),
    json: Json = False,
) -> None:
    """The full job on the shipped organism: FP16, AWQ, GPTQ and the GGUF ladder.

    Interrupted or repeated, it goes on from what the directory holds. It exits with 0 when it shows
    what it is built to show, a detected loss of refusals.
    """
    from mechprobe.experiments.spec_file import load_spec

    _run(load_spec("demo"), out, json, ends=shown_exit)


def run(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC",
            help="A YAML file, or a shipped spec: demo, demo-51, qwen2.5-0.5b, smollm2-135m, "
            "smollm2-refuses, study-51.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run directory; runs/NAME by default."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show steps, downloads, memory and time; run nothing.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="One of N jobs on the same directory; the run without it writes the tables.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="In this process, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of the Ray cluster; one on this machine without."),
    ] = None,
    threads: Threads = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the shipped specs.")] = False,
    json: Json = False,
) -> None:
    """Any matrix: models by precisions, as a spec describes them.

    Interrupted or repeated, it goes on from what the directory holds. The last line is the verdict.
    """
    from mechprobe.errors import SpecError
    from mechprobe.experiments.running import choose_engine, parse_shard
    from mechprobe.experiments.spec_file import reading_of
    from mechprobe.experiments.spec_problems import spec_problems

    if listed:
        _list(json)
        return
    if spec is None:
        raise SpecError("name a spec: a YAML file, or one that `mechprobe run --list` shows")
    reading = reading_of(spec)
    where = out or Path("runs") / (reading.spec.name if reading.spec else "unnamed")
    loaded = right_spec(
        reading, lambda left: spec_problems(left, where, local_only=True), where, json
    )
    if threads is not None:
        loaded = loaded.model_copy(update={"threads": threads})
    part = parse_shard(shard)
    chosen = choose_engine(engine, address, part)
    if plan and part:
        raise SpecError("--plan shows the whole run; leave --shard out")
    if plan:
        _plan(loaded, where, json)
        return
    _run(loaded, where, json, chosen, part)


def _list(json: bool) -> None:
    from mechprobe.experiments.spec_file import shipped_specs

    with quiet() as screen:
        if json:
            screen.document([{"name": one.name, "about": one.about} for one in shipped_specs()])
            return
        for one in shipped_specs():
            screen.out.print(f"{one.name:<14} {one.about}", soft_wrap=True)


def _plan(spec: Spec, out: Path, json: bool) -> None:
    from dataclasses import asdict

    from mechprobe.experiments.forecast import forecast, forecast_lines

    with quiet() as screen, problems_shown(screen, out, json):
        found = forecast(spec, out)
        if json:
            screen.document(asdict(found))
            return
        for line in forecast_lines(found):
            screen.out.print(line, soft_wrap=True)


def _run(
    spec: Spec,
    out: Path,
    json: bool,
    engine: StepEngine | None = None,
    part: tuple[int, int] | None = None,
    ends: Callable[[Finished], ExitCode] = lambda finished: finished.exit_code,
) -> None:
    from mechprobe.analysis.verdict import text
    from mechprobe.experiments.progress import RunDisplay
    from mechprobe.experiments.running import run_spec

    with quiet() as screen, problems_shown(screen, out, json):

        def show(title: str, total: int) -> AbstractContextManager[Display]:
            return RunDisplay(screen.err, title, total)

        def tell(source: str) -> Bar:
            screen.err.print(f"Making {source}: minutes, once …", soft_wrap=True)
            return Bar(screen.err, f"making {source}")

        finished = run_spec(spec, out, show, engine, part=part, tell=tell)
        code = ends(finished)
        if json:
            screen.document(_document(finished, code))
        else:
            _print(screen, spec, out, finished)
        _failures(screen, finished)
        if not json and finished.verdict:
            screen.out.print(text(finished.verdict), style="bold", soft_wrap=True)
    raise typer.Exit(code)


def shown_exit(finished: Finished) -> ExitCode:
    """0 for a demo that shows what it is built to show: all its rows, and a detected loss."""
    if finished.exit_code is ExitCode.REGRESSION:
        return ExitCode.DONE if finished.whole else ExitCode.NOT_MEASURED
    return finished.exit_code or ExitCode.NOT_MEASURED


def _print(screen: Screen, spec: Spec, out: Path, finished: Finished) -> None:
    from rich.padding import Padding

    from mechprobe.experiments import table
    from mechprobe.experiments.rendered import prompt_notes
    from mechprobe.experiments.table_notes import notes

    lost = finished.verdict["lost"] if finished.verdict else []
    if finished.verdict:
        screen.out.print(finished.verdict["headline"], style="bold", soft_wrap=True)
    unseen = {(one["model"], one["cell"]): one["unseen"] for one in lost}
    for model in spec.models:
        rows = [row for row in finished.rows if row["model"] == model.name]
        if any(row["status"] == "ok" for row in rows):
            title = f"{model.name} ({model.family})" if model.family else model.name
            screen.out.print(table.matrix_table(rows, title, screen.out.width, unseen))
            said = table.legend(rows, screen.out.width)
            screen.out.print(Padding(said, (0, 0, 1, 0)), style="dim")
            blind = table.is_marked(rows, screen.out.width, unseen)
            for line in notes(rows, blind=blind):
                screen.out.print(line, soft_wrap=True)
            for note in prompt_notes(finished.run, model.name):
                screen.out.print(f"Prompts: {note}", soft_wrap=True)
            for line in table.warnings(rows):
                screen.out.print(f"Warning: {line}", soft_wrap=True)
            screen.out.print(table.verdict(rows), style="bold", soft_wrap=True)
    for line in finished.verdict["warnings"] if finished.verdict else ():
        screen.out.print(f"Warning: {line}.", soft_wrap=True)
    if finished.part is not None:
        files = f"The tables follow when the same command runs without --shard. Files: {out}/."
    else:
        files = f"Files: {out}/ (report.html, matrix.csv, cells/)."
    screen.out.print(f"{table.reuse(finished)} {files}", soft_wrap=True)


def _failures(screen: Screen, finished: Finished) -> None:
    for line in finished.outcome.failure_lines():
        screen.err.print(line, style="red", soft_wrap=True)
    for line in finished.unmet:
        screen.err.print(f"mechprobe: not measured: {line}", soft_wrap=True)


def _document(finished: Finished, code: ExitCode) -> dict[str, Any]:
    return {
        "run": str(finished.run.path),
        "exit_code": code,
        "verdict": finished.verdict,
        **finished.outcome.as_dict(),
        "matrix": [_typed(row) for row in finished.rows],
    }


def _typed(row: dict[str, str]) -> dict[str, Any]:
    from mechprobe.experiments.matrix import typed

    return {name: typed(name, value) for name, value in row.items()}
