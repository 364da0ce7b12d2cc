"""`mechprobe probe NAME`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.terminal import quiet
from mechprobe.errors import SpecError

if TYPE_CHECKING:
    from mechprobe.probes.refusal_direction import RefusalDirectionResult

app = typer.Typer(no_args_is_help=True, help="One probe on one checkpoint.")


@app.callback()
def _root() -> None:
    pass


@app.command("refusal-direction")
def refusal_direction(
    model: options.Model,
    baseline: Annotated[
        str | None, typer.Option(help="The unquantized checkpoint to compare with.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="builtin, organism, a JSONL file, or a folder with Arditi's split files.",
        ),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Block; 65 % depth by default.")] = None,
    fit: Annotated[int, typer.Option(min=2, help="Fitting prompts of each label.")] = 128,
    evaluate: Annotated[int, typer.Option(min=2, help="Held-out prompts of each label.")] = 32,
    causal: Annotated[bool, typer.Option(help="Generate under ablation and addition.")] = True,
    instrument: Annotated[str, typer.Option(help="What reads refusals.")] = "hard",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    kernel: Annotated[str, typer.Option(metavar="dense|native")] = "dense",
    device: options.Device = "cpu",
    revision: options.Revision = None,
    expect: options.Expect = None,
    tokenizer: options.TokenizerFrom = None,
    chat_template: options.ChatTemplate = None,
    template: options.TemplateName = "chat",
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Refusal direction: norm, cosine to the baseline's, separability, causal check.

    Written as safetensors and JSON into --out (runs/refusal-direction/MODEL by default).
    """
    from mechprobe.experiments.probing import ProbeRequest, probe_refusal_direction

    request = ProbeRequest(
        model=model,
        baseline=baseline,
        prompts=prompts,
        layer=layer,
        kernel=_one_of("--kernel", kernel, ("dense", "native")),
        device=device,
        revision=revision,
        expect=expect,
        tokenizer=tokenizer,
        chat_template=chat_template,
        template=_one_of("--template", template, ("chat", "raw")),
        fit=fit,
        evaluate=evaluate,
        causal=causal,
        instrument=instrument,
        max_new_tokens=max_new_tokens,
    )
    target = out or Path("runs/refusal-direction") / re.sub(r"[^\w.-]+", "-", model).strip("-")
    with quiet() as screen, screen.err.status("") as status:
        result = probe_refusal_direction(request, status.update)
        _save(result, target)
        status.stop()
        if json:
            screen.document({**result.to_dict(), "files": str(target)})
        else:
            screen.out.print(result)
            screen.out.print(f"Files: {target}/")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise SpecError(f"{option} {value}: use {' or '.join(allowed)}")
    return value


def _save(result: RefusalDirectionResult, target: Path) -> None:
    from mechprobe.experiments.rundir import explained

    with explained(target):
        result.save(target)
