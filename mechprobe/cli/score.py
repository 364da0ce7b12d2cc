"""`mechprobe score`: a task's scores from a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen
from mechprobe.exit_codes import ExitCode

Source = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        help="What the task asks: an official file, a JSONL file, builtin, organism, "
        "hf-dataset:…; the task's default otherwise.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="NAME=VALUE", help="Of the task's loader, such as split=test."
    ),
]


def score(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="refusal, over_refusal, jailbreak, truthfulqa, bbq, multiple_choice, reference.",
            show_default=False,
        ),
    ],
    answers: Annotated[
        Path,
        typer.Option(
            "--answers",
            "-a",
            metavar="FILE",
            help="JSONL or CSV with text, and the item's id or prompt; row and sample where there "
            "are several. `mechprobe generate --task TASK --out FILE` writes one.",
            show_default=False,
        ),
    ],
    source: Source = None,
    instrument: Annotated[
        str | None,
        typer.Option(help="What reads them; or a judge, where FILE holds its judgements."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many clusters of items, as in generate.")
    ] = None,
    option: Options = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A line per answer, without its text."),
    ] = None,
    json: Json = False,
) -> None:
    """Score answers, whoever gave them: every number with its interval and its instrument.

    Answers to only a part of the items that the command names are scored, and the exit code is 4:
    name the same items, with the --limit that they were generated with.
    """
    from mechprobe.experiments.scoring import asked_task, score_file, write_rows

    found = score_file(asked_task(task, source, limit, option or ()), answers, instrument)
    if out is not None:
        write_rows(out, found)
    screen = Screen.plain()
    screen.say_unchecked(answers)
    if json:
        screen.document([one.as_dict() for one in found])
    else:
        for one in found:
            screen.out.print(one.row or one.scored.task, style="bold", soft_wrap=True)
            for each in one.scored.scores:
                screen.out.print(f"  {each}", soft_wrap=True)
            if one.unanswered:
                screen.err.print(
                    f"mechprobe: {one.unanswered} items without an answer are in no score; "
                    "if fewer were asked, give the same --limit",
                    soft_wrap=True,
                )
    if any(one.unanswered for one in found):
        raise typer.Exit(ExitCode.NOT_MEASURED)
