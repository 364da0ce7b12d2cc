"""`mechprobe controls`: checkpoints with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen, quiet
from mechprobe.errors import CheckpointError
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.controls import Control, Truth

app = typer.Typer(
    no_args_is_help=True,
    help="Checkpoints with known truth: planted, graded and placed losses of refusals, and none.",
)
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="As `controls list` shows them.", show_default=False),
]

_ONE_LINE = 160
"""Columns that a row of the list needs at most: a narrow terminal wraps it, a pipe does not."""


@app.command("list")
def list_them(json: Json = False) -> None:
    """What can be built, and what is here."""
    from mechprobe.controls import built_folder, controls

    with quiet() as screen:
        rows = [(row, built_folder(row)) for row in controls()]
        if json:
            screen.document(
                [
                    {
                        **row.recipe(),
                        "about": row.about,
                        "digest": row.digest(),
                        "minutes": row.minutes,
                        "path": str(folder) if folder else None,
                    }
                    for row, folder in rows
                ]
            )
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("control", "kind", "level", "target", "built", "what is done"):
            table.add_column(title, no_wrap=True)
        for row, folder in rows:
            target = "" if row.target is None else f"{row.target:g}"
            built = "yes" if folder else f"~{row.minutes:g} min"
            table.add_row(row.name, row.kind, row.level or "", target, built, row.about)
        screen.out.width = max(screen.out.width, _ONE_LINE)
        screen.out.print(table)


@app.command()
def build(
    names: Names = None,
    every: Annotated[bool, typer.Option("--all", help="Every control that is not built.")] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to train on beside the shipped ones: the train split of a .jsonl file or "
            "of a folder of splits. For controls of a real model.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="How many are built at a time, each with its share of the cores."),
    ] = 1,
    json: Json = False,
) -> None:
    """Build controls, each with what is true of it measured on a large held-out set.

    Interrupted or repeated, it goes on from what the cache holds. A built control is the source
    control:NAME of every command.
    """
    from mechprobe.controls import (
        build_side_by_side,
        built_folder,
        ensure_built,
        read_truth,
        with_prompts,
    )

    rows = _rows(names, every)
    chosen = rows if prompts is None else tuple(with_prompts(row, prompts) for row in rows)
    with quiet() as screen:
        done = []

        def say(row: Control, folder: Path, said: str) -> None:
            truth = read_truth(folder)
            done.append({"name": row.name, "path": str(folder), "forms": _losses(row, truth)})
            if not json:
                screen.out.print(f"{said}: control:{row.name}. Files: {folder}/", soft_wrap=True)
                _say(screen, row, truth)

        waiting = {}
        for number, (declared, row) in enumerate(zip(rows, chosen, strict=True), 1):
            if folder := built_folder(row):
                say(row, folder, "Was there")
            elif jobs > 1:
                waiting[declared.name] = row
            else:
                with Bar(screen.err, f"building {row.name} ({number} of {len(rows)})") as bar:
                    folder = ensure_built(row, bar)
                say(row, folder, "Built")
        if waiting:
            with Bar(screen.err, f"building {len(waiting)} controls") as bar:
                bar(0, len(waiting))
                for built, name in enumerate(build_side_by_side(list(waiting), jobs, prompts), 1):
                    say(waiting[name], ensure_built(waiting[name]), "Built")
                    bar(built, len(waiting))
        if json:
            screen.document(done)


@app.command()
def evaluate(
    names: Names = None,
    prompts: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Size of a screen; may be repeated. 50, 100 and 200 by default."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose threshold: study, mechprobe or demo.")] = (
        "mechprobe"
    ),
    json: Json = False,
) -> None:
    """Say how often a screen of so many prompts finds what is known to be lost.

    Of the controls named, by default of all that are built. It asks no model: the chance is exact,
    from the answers in the controls' truth. Found where no more than the threshold was lost is a
    false alarm.
    """
    from mechprobe.analysis.regimes import get_preset
    from mechprobe.controls import built_folder, controls, read_truth
    from mechprobe.controls.power import detection

    rule, sizes = get_preset(preset), sorted(prompts or (50, 100, 200))
    rows = _rows(names, False) if names else controls()
    with quiet() as screen:
        found = []
        for row in rows:
            folder = built_folder(row)
            if folder is None and names:
                raise CheckpointError(
                    f"control {row.name} is not built yet; run: mechprobe controls build {row.name}"
                )
            if folder is None:
                continue
            truth = read_truth(folder)
            for one in _losses(row, truth):
                chances = {str(n): detection(truth, one["form"], n, rule) for n in sizes}
                found.append({"name": row.name, "kind": row.kind, **one, "found": chances})
        if not found:
            raise CheckpointError("no control is built yet; run: mechprobe controls build --all")
        if json:
            screen.document({"preset": preset, "fall": float(rule.fall), "controls": found})
        else:
            _say_power(screen, found, rule.fall)


def _say_power(screen: Screen, found: list[dict[str, Any]], fall: Any) -> None:
    from rich.table import Table

    sizes = list(found[0]["found"])
    table = Table(box=None, pad_edge=False)
    table.add_column("control", no_wrap=True)
    table.add_column("form")
    for title in ("lost", "target", "complies", "quality", *(f"n={n}" for n in sizes)):
        table.add_column(title, justify="right")
    for one in found:
        known = (one["target"], one["compliance_of_lost"], one["quality_change_points"])
        forms = ("{:g}", "{:.0%}", "{:+.1f}")
        shown = ["" if v is None else f.format(v) for f, v in zip(forms, known, strict=True)]
        chances = [f"{chance:.0%}" for chance in one["found"].values()]
        table.add_row(one["name"], one["form"], f"{one['loss_points']:.1f}", *shown, *chances)
    screen.out.print(table)
    screen.out.print(
        f"lost, target, quality: points; n=N: how often a screen of N harmful prompts sees "
        f"more than {abs(float(fall)):g} points lost",
        style="dim",
    )
    for kept, said in ((True, "lose more than the threshold: found"), (False, "do not: alarm")):
        rows = [one for one in found if (one["loss_points"] > -float(fall)) is kept]
        if rows:
            rates = ", ".join(
                f"{sum(one['found'][n] for one in rows) / len(rows):.1%} at {n}" for n in sizes
            )
            screen.out.print(f"{len(rows)} forms {said} in {rates} prompts.", soft_wrap=True)


def _rows(names: list[str] | None, every: bool) -> tuple[Control, ...]:
    from mechprobe.controls import control, controls

    if every and names:
        raise CheckpointError("name controls, or give --all, not both")
    if every:
        return controls()
    if not names:
        raise CheckpointError("name a control, or give --all; mechprobe controls list shows them")
    return tuple(control(name) for name in names)


def _losses(row: Control, truth: Truth) -> list[dict[str, Any]]:
    """Return what is true of each form that is compared with the reference."""
    return [
        {
            "form": name,
            "reference": truth.reference,
            "refused": form.refused,
            "target": row.target if name == (row.level or "control") else None,
            "loss_points": truth.loss(name),
            "compliance_of_lost": truth.compliance(name),
            "quality_change_points": truth.quality_change(name),
            "n": len(form.harmful),
        }
        for name, form in truth.forms.items()
        if name != truth.reference
    ]


def _say(screen: Screen, row: Control, truth: Truth) -> None:
    for one in _losses(row, truth):
        said = f"  {one['form']} against {one['reference']}: {one['loss_points']:.1f} points lost"
        if one["target"] is not None:
            said += f" (target {one['target']:g})"
        if one["compliance_of_lost"] is not None:
            said += f", {one['compliance_of_lost']:.0%} of the lost ones are compliance"
        if one["quality_change_points"] is not None:
            said += f", quality {one['quality_change_points']:+.1f} points"
        screen.out.print(f"{said}; n = {one['n']}", soft_wrap=True)
