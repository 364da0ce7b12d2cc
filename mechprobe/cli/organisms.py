"""`mechprobe organisms`: the small models of a synthetic world."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen, quiet

app = typer.Typer(no_args_is_help=True, help="Small models of a synthetic world.")


@app.command("list")
def list_them(json: Json = False) -> None:
    """What can be trained, and what is here."""
    from mechprobe.organisms import list_organisms

    found = list_organisms()
    with quiet() as screen:
        if json:
            screen.document(
                [
                    {
                        **asdict(one.recipe),
                        "path": str(one.path) if one.path else None,
                        "shipped": one.shipped,
                    }
                    for one in found
                ]
            )
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("organism", "architecture", "layers", "width", "where"):
            table.add_column(title, justify="right" if title in ("layers", "width") else "left")
        for one in found:
            how = one.recipe
            where = "ships with mechprobe" if one.shipped else str(one.path or "not trained yet")
            table.add_row(how.name, how.architecture, str(how.layers), str(how.hidden), where)
        screen.out.print(table)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="For example llama-s.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The folder; the cache by default."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The recipe's by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The recipe's by default.")] = None,
) -> None:
    """Train an organism: seeded, minutes on two cores."""
    from mechprobe.organisms import train_organism
    from mechprobe.organisms.recipes import recipe
    from mechprobe.preflight import require_writable

    recipe(name)
    if out is not None:
        require_writable(out, folder=True)
    with quiet():  # what transformers says on import; the bar itself is the organisms' own
        import transformers.modeling_utils  # noqa: F401
    path = train_organism(name, out, seed=seed, steps=steps)
    Screen.plain().out.print(f"Trained {name}. Files: {path}/", soft_wrap=True)
