"""`mechprobe report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import quiet
from mechprobe.errors import SpecError


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A finished run.", show_default=False)
    ],
    factorial: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A finished factorial to add; needs --out."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Another folder for page and figures."),
    ] = None,
    json: Json = False,
) -> None:
    """Write report.html and figures/ of a finished run anew."""
    from mechprobe.experiments.reporting import remake_report

    if factorial is not None and out is None:
        raise SpecError("--factorial: needs --out DIR; a run directory holds the report of its run")
    with quiet() as screen:
        page = remake_report(run, factorial, out)
        screen.say_unchecked(run)
        if json:
            screen.document({"report": str(page)})
        else:
            screen.out.print(f"Report: {page}", soft_wrap=True)
