"""`mechprobe export`: any checkpoint as a transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.terminal import quiet
from mechprobe.journal import explained
from mechprobe.progress import Bar


def export(
    model: Annotated[str, typer.Argument(help=options.SOURCES, show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Folder to write.", show_default=False),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float16|bfloat16|float32",
            help="Of the weights; by default as what is not quantized is stored, of a quantized "
            "GGUF float16.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    tokenizer: options.TokenizerFrom = None,
    chat_template: options.ChatTemplate = None,
    json: options.Json = False,
) -> None:
    """Write any checkpoint as a transformers folder: dequantized, with tokenizer and template.

    The folder says what it was dequantized from, and so does whatever is made of it.
    """
    from mechprobe.models.export import export as write
    from mechprobe.models.provenance import dequantized_from

    with quiet() as screen:
        with Bar(screen.err, f"exporting {model}"), explained(out):
            path = write(
                model, out, dtype=dtype, revision=revision, device=device, tokenizer=tokenizer,
                chat_template=str(chat_template) if chat_template else None,
            )  # fmt: skip
        origin = dequantized_from(path)
        if json:
            screen.document({"model": model, "path": str(path), "dequantized_from": origin})
        else:
            said = f", dequantized from {origin}" if origin else ""
            screen.out.print(f"Wrote {path}{said}", soft_wrap=True)
