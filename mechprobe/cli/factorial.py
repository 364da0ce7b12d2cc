"""`mechprobe factorial`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.options import Json, Threads
from mechprobe.cli.specs import problems_shown, right_spec
from mechprobe.cli.terminal import quiet
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.experiments.steps import Display


def factorial(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="A YAML file, or factorial-demo, factorial-study.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The run directory; runs/NAME by default."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Temperature: does sampling, not only quantization, move refusals?

    Models by precisions by temperatures by samples. Interrupted or repeated, it goes on from what
    the directory holds.
    """
    from mechprobe.experiments.factorial_running import run_factorial
    from mechprobe.experiments.factorial_spec import factorial_reading_of
    from mechprobe.experiments.factorial_view import document_of, show_finished
    from mechprobe.experiments.progress import RunDisplay
    from mechprobe.experiments.spec_problems import factorial_problems

    reading = factorial_reading_of(spec)
    place = out or Path("runs") / (reading.spec.name if reading.spec else "unnamed")
    loaded = right_spec(
        reading, lambda left: factorial_problems(left, place, local_only=True), place, json
    )
    if threads is not None:
        loaded = loaded.model_copy(update={"threads": threads})
    with quiet() as screen, problems_shown(screen, place, json):

        def show(title: str, total: int) -> AbstractContextManager[Display]:
            return RunDisplay(screen.err, title, total)

        def tell(source: str) -> Bar:
            screen.err.print(f"Making {source}: minutes, once …", soft_wrap=True)
            return Bar(screen.err, f"making {source}")

        finished = run_factorial(loaded, place, show, tell=tell)
        if json:
            screen.document(document_of(finished))
        else:
            show_finished(finished, place, screen.out)
        for line in finished.outcome.failure_lines():
            screen.err.print(line, style="red", soft_wrap=True)
    raise typer.Exit(finished.exit_code)
