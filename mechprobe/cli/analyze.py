"""`mechprobe analyze`: a matrix from elsewhere, or a finished run again by other thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode


def analyze(
    matrix: Annotated[
        Path,
        typer.Argument(
            metavar="MATRIX.csv|RUN",
            show_default=False,
            help="One row per checkpoint, its baseline among them: model, cell, baseline, "
            "refusal_rate and refusal_n (or refusal_count, or refusal_points for a delta), and the "
            "same of quality and second. Or a run directory.",
        ),
    ],
    preset: Annotated[
        str | None, typer.Option(metavar="study|mechprobe|demo", help="Thresholds of the regimes.")
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--non-strict", help="Whether exactly at a threshold is beyond it."),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(metavar="MEASURE", help="Measure that is quality: accuracy, …"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Another name of a column; may be repeated."),
    ] = None,
    n: Annotated[
        list[str] | None,
        typer.Option(
            "--n", metavar="refusal=220", help="Prompts of every row, where no column says it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the document.")
    ] = None,
    json: Json = False,
) -> None:
    """Regimes, boundaries, asymmetry and what the numbers cannot say."""
    from mechprobe.analysis.foreign import analyse_table
    from mechprobe.analysis.tables import read_table
    from mechprobe.experiments.analysing import analyse_run
    from mechprobe.experiments.integrity import require_intact
    from mechprobe.experiments.rundir import write_json

    given = {"preset": preset, "strict": strict, "quality": quality}
    chosen: dict[str, Any] = {name: x for name, x in given.items() if x is not None}
    if matrix.is_dir():
        if column or n:
            raise SpecError(f"{matrix}: --column and --n are for tables; a run has its own")
        content = analyse_run(matrix, **chosen)
    else:
        require_intact(matrix)
        sizes = {name: _count(name, text) for name, text in _pairs("--n", n).items()}
        table = read_table(matrix, _pairs("--column", column), quality=quality, sizes=sizes)
        content = analyse_table(table, **chosen)
    if out:
        write_json(out, content)
    screen = Screen.plain()
    if not matrix.is_dir():  # the document of a run says it itself
        screen.say_unchecked(matrix)
    if json:
        screen.document(content)
    else:
        _say(screen, content)
    if content["verdict"]["level"] == "danger":
        raise typer.Exit(ExitCode.REGRESSION)


def _pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise SpecError(f"{option} {text}: write FIELD=VALUE")
        found[name] = value
    return found


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise SpecError(f"--n {name}={text}: {text} is no number of prompts")
    return int(text)


def _say(screen: Screen, content: Mapping[str, Any]) -> None:
    from rich.table import Table

    from mechprobe.analysis.verdict import text

    table = Table("row", "ΔR", "ΔQ", "n", "p (Holm)", "regime", "", box=None, pad_edge=False)
    quality = content["preset"]["measures"]["quality"]
    for row in content["rows"]:
        if not row["baseline"]:
            continue
        refusal = row["deltas"].get("refusal") or {}
        notes = [name for name in ("boundary", "engine_differs") if row[name]]
        table.add_row(
            f"{row['model']}/{row['cell']}",
            _number(refusal.get("points"), "+.2f"),
            _number((row["deltas"].get(quality) or {}).get("points"), "+.2f"),
            str(refusal.get("n") or "-"),
            _number(refusal.get("mcnemar_p_holm"), ".2g"),
            row["regime"].replace("_", " "),
            ", ".join(notes).replace("_", " "),
        )
    screen.out.print(table)
    for sentence in ("", *content["summary"], text(content["verdict"])):
        screen.out.print(sentence, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
