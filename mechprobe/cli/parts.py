"""`mechprobe capture` and `quantize`: the parts of a run, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mechprobe.cli import options
from mechprobe.cli.terminal import quiet
from mechprobe.errors import SpecError
from mechprobe.journal import explained
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.models.quantize_awq_gptq import Writer

Texts = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; may be repeated.")
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="builtin, over-refusal, organism, or JSONL."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most so many prompts; of a task, clusters of items.")
]


def _template(name: str) -> Any:
    if name not in ("chat", "raw"):
        raise SpecError(f"--template {name}: use chat or raw")
    return name


def capture(
    model: options.Model,
    points: Annotated[
        list[str], typer.Option("--points", "-p", help="Hook names or globs; may be repeated.")
    ] = ["blocks.*.hook_resid_post"],  # noqa: B006 - typer copies it
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR")] = Path("runs/activations"),
    positions: Annotated[str, typer.Option(help="last, all, or -3,-2,-1")] = "last",
    prompt: Texts = None,
    prompts: PromptsFile = None,
    limit: Limit = None,
    dtype: Annotated[str, typer.Option(metavar="float32|float16")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    kernel: Annotated[str, typer.Option(metavar="dense|native")] = "dense",
    device: options.Device = "cpu",
    revision: options.Revision = None,
    expect: options.Expect = None,
    tokenizer: options.TokenizerFrom = None,
    chat_template: options.ChatTemplate = None,
    template: options.TemplateName = "chat",
    json: options.Json = False,
) -> None:
    """Stream activations into an HDF5 store; interrupted, it goes on where it was."""
    import mechprobe

    if dtype not in ("float32", "float16"):
        raise SpecError(f"--dtype {dtype}: use float32 or float16")
    if kernel not in ("dense", "native"):
        raise SpecError(f"--kernel {kernel}: use dense or native")
    places = _positions(positions)
    named: dict[str, Any] = {
        "kernel": kernel, "device": device, "revision": revision, "expect": expect,
        "tokenizer": tokenizer,
    }  # fmt: skip
    own = str(chat_template) if chat_template else None
    with quiet() as screen:
        from mechprobe.experiments.answering import prompt_records
        from mechprobe.experiments.rendered import template_digest
        from mechprobe.preflight import Problems, check_loadable, require_writable

        problems = Problems()
        texts: list[str] = []
        with problems.of("output"):
            require_writable(out, folder=True)
        with problems.of("prompts"):
            rows = prompt_records(model, prompt, prompts, limit)
            texts = [row["prompt"] for row in rows]
        with problems.of("prompts"):
            template_digest(own)
        check_loadable(problems, model, **named)
        problems.require_none()
        with Bar(screen.err, f"loading {model}") as bar:
            loaded = mechprobe.load(model, chat_template=own, **named)
            batch = loaded.encode(texts, template=_template(template))
            for note in batch.notes:
                screen.err.print(f"mechprobe: {note}", soft_wrap=True)
            bar.begin("capturing")
            store = mechprobe.capture(
                loaded, batch, points, places, out, dtype=dtype, batch_size=batch_size, progress=bar
            )
        shapes = {name: list(store[name].shape) for name in store.names}
        if json:
            screen.document({"store": str(out), "prompts": batch.digest, "shapes": shapes})
        else:
            screen.out.print(f"{len(texts)} prompts, {len(shapes)} points. Files: {out}/")


def _positions(text: str) -> Any:
    if text in ("last", "all"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError(
            f"--positions {text}: use last, all, or numbers such as -3,-2,-1"
        ) from error


def quantize(
    model: Annotated[
        str, typer.Argument(help="The 16-bit checkpoint, or a GGUF.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="awq, gptq, gptq-int8; F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_1, Q4_0, Q3_K_S, Q2_K, "
            "or any other level that llama.cpp names.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder, or FILE.gguf.", show_default=False)
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts for AWQ and GPTQ: one a line, or JSONL. By default the world's harmless "
            "ones for an organism, else the built-in harmless ones of the train split.",
        ),
    ] = None,
    writer: Annotated[str, typer.Option(metavar="gptqmodel|autoawq")] = "gptqmodel",
    group_size: Annotated[
        int | None,
        typer.Option(
            help="By default 128, or 64 or 32 where widths are no multiple of it.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option()] = 0,
    json: options.Json = False,
) -> None:
    """Quantize for real: AWQ and GPTQ by GPTQModel, GGUF levels by llama.cpp's quantizer.

    A GGUF is dequantized first, as `mechprobe export` does; the result says from what.
    """
    if writer not in ("gptqmodel", "autoawq"):
        raise SpecError(f"--writer {writer}: use gptqmodel or autoawq")
    with quiet() as screen:
        with Bar(screen.err, f"{model} to {to}") as bar, explained(out):
            from mechprobe.experiments.quantization import quantize as make
            from mechprobe.models.provenance import dequantized_from

            path = make(
                model,
                to,
                out,
                calibration=calibration,
                calibration_name=calibration.name if calibration else None,
                writer=cast("Writer", writer),
                group_size=group_size,
                device=device,
                seed=seed,
                progress=bar,
            )
        if json:
            screen.document({"model": model, "to": to, "path": str(path)})
        else:
            origin = dequantized_from(path)
            said = f", dequantized from {origin} first" if origin else ""
            screen.out.print(f"Wrote {path}{said}", soft_wrap=True)
