"""`mechprobe controls`: checkpoints with known truth."""

from __future__ import annotations

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
            table.add_column(title, no_wrap=title != "what is done")
        for row, folder in rows:
            target = "" if row.target is None else f"{row.target:g}"
            built = "yes" if folder else f"~{row.minutes:g} min"
            table.add_row(row.name, row.kind, row.level or "", target, built, row.about)
        screen.out.print(table)


@app.command()
def build(
    names: Names = None,
    every: Annotated[bool, typer.Option("--all", help="Every control that is not built.")] = False,
    json: Json = False,
) -> None:
    """Build controls, each with what is true of it measured on a large held-out set.

    Interrupted or repeated, it goes on from what the cache holds. A built control is the source
    control:NAME of every command.
    """
    from mechprobe.controls import built_folder, ensure_built, read_truth

    rows = _rows(names, every)
    with quiet() as screen:
        done = []
        for number, row in enumerate(rows, 1):
            there = built_folder(row) is not None
            title = f"building {row.name} ({number} of {len(rows)})"
            with Bar(screen.err, title) as bar:
                folder = ensure_built(row, bar)
            truth = read_truth(folder)
            done.append({"name": row.name, "path": str(folder), "forms": _losses(row, truth)})
            if not json:
                said = "Was there" if there else "Built"
                screen.out.print(f"{said}: control:{row.name}. Files: {folder}/", soft_wrap=True)
                _say(screen, row, truth)
        if json:
            screen.document(done)


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
