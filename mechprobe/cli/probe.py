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
    from rich.table import Table

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
            screen.out.print(_table(result))
            screen.out.print(f"Files: {target}/")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise SpecError(f"{option} {value}: use {' or '.join(allowed)}")
    return value


def _save(result: RefusalDirectionResult, target: Path) -> None:
    from mechprobe.experiments.rundir import explained

    with explained(target):
        result.save(target)


def _table(result: RefusalDirectionResult) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()

    def fixed(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3f}"

    direction = result.direction
    table.add_row("model", f"{direction.source} ({direction.precision}, {direction.kernel})")
    table.add_row("layer", f"{result.layer} of {len(direction.vectors)}, block input, last token")
    table.add_row("norm", f"{result.norm:.3f}")
    if result.cosine is not None:
        floor = fixed(result.cosine_floor)
        table.add_row("cosine to baseline", f"{fixed(result.cosine)} (noise floor {floor})")
        table.add_row("norm / baseline's", fixed(result.norm_ratio))
        table.add_row("AUC on baseline's", fixed(result.auc_on_baseline))
    held_out = f"{result.n_harmful} harmful, {result.n_harmless} harmless, held out"
    table.add_row("AUC", f"{fixed(result.auc)} ({held_out})")
    table.add_row("d′", fixed(result.dprime))  # noqa: RUF001 - the prime is the field's own name
    if result.causal is not None:
        c = result.causal
        table.add_row("harmful refused", f"{c.harmful} by “{c.instrument}”")
        table.add_row("  direction ablated", str(c.harmful_ablated))
        table.add_row("  random ablated", str(c.harmful_ablated_random))
        table.add_row("harmless refused", str(c.harmless))
        table.add_row("  direction added", str(c.harmless_added))
        table.add_row("  random added", str(c.harmless_added_random))
    for line in result.not_measured:
        table.add_row("not measured", line, style="dim")
    return table
