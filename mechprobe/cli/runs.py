"""`mechprobe demo` and `mechprobe run`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen, quiet

if TYPE_CHECKING:
    from mechprobe.experiments.running import Finished
    from mechprobe.experiments.spec import Spec
    from mechprobe.experiments.steps import Display


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The run directory.")
    ] = Path("runs/demo"),
    json: Json = False,
) -> None:
    """The full job on the shipped organism: FP16, AWQ, GPTQ and the GGUF ladder.

    Interrupted or repeated, it goes on from what the directory holds.
    """
    from mechprobe.experiments.spec_file import parse_spec

    text = files("mechprobe.experiments").joinpath("specs/demo.yaml").read_text(encoding="utf-8")
    _run(parse_spec(text, "demo.yaml"), out, json)


def run(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML file.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run directory; runs/NAME by default."),
    ] = None,
    json: Json = False,
) -> None:
    """Any matrix: models by precisions, as a spec describes them."""
    from mechprobe.experiments.spec_file import load_spec

    loaded = load_spec(spec)
    _run(loaded, out or Path("runs") / loaded.name, json)


def _run(spec: Spec, out: Path, json: bool) -> None:
    from mechprobe.experiments.progress import RunDisplay
    from mechprobe.experiments.running import run_spec

    with quiet() as screen:

        def show(title: str, total: int) -> AbstractContextManager[Display]:
            return RunDisplay(screen.err, title, total)

        finished = run_spec(spec, out, show)
        if json:
            screen.document(_document(finished))
        else:
            _print(screen, spec, out, finished)
        _failures(screen, finished)
    raise typer.Exit(finished.exit_code)


def _print(screen: Screen, spec: Spec, out: Path, finished: Finished) -> None:
    from rich.padding import Padding

    from mechprobe.experiments import table

    for model in spec.models:
        rows = [row for row in finished.rows if row["model"] == model.name]
        if any(row["status"] == "ok" for row in rows):
            title = f"{model.name} ({model.family})" if model.family else model.name
            screen.out.print(table.matrix_table(rows, title, screen.out.width))
            said = table.legend(rows, screen.out.width)
            screen.out.print(Padding(said, (0, 0, 1, 0)), style="dim")
            screen.out.print(table.verdict(rows), style="bold")
    screen.out.print(
        f"{table.reuse(finished)} Files: {out}/ (matrix.csv, gaps.csv, cells/).", soft_wrap=True
    )


def _failures(screen: Screen, finished: Finished) -> None:
    """One line per error, however many cells met it."""
    met: dict[str, list[str]] = {}
    for name in finished.outcome.failures:
        met.setdefault(finished.outcome.results[name].error, []).append(name)
    for error, names in met.items():
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        line = f"mechprobe: {names[0]}{others}: {error}"
        screen.err.print(line, style="red", soft_wrap=True)


def _document(finished: Finished) -> dict[str, Any]:
    from mechprobe.experiments.steps import STATUSES
    from mechprobe.experiments.table import verdict

    results = finished.outcome.results
    return {
        "run": str(finished.run.path),
        "exit_code": finished.exit_code,
        "verdict": verdict(finished.rows) if finished.rows else None,
        "steps": {kind: finished.outcome.count(kind) for kind in STATUSES},
        "failures": {name: results[name].error for name in finished.outcome.failures},
        "matrix": [_typed(row) for row in finished.rows],
    }


def _typed(row: dict[str, str]) -> dict[str, Any]:
    from mechprobe.experiments.matrix import typed

    return {name: typed(name, value) for name, value in row.items()}
