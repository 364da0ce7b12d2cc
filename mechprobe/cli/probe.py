"""`mechprobe probe NAME`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.terminal import quiet, say_error
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode
from mechprobe.journal import explained
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.experiments.spec import ProbeName

app = typer.Typer(
    no_args_is_help=True, help="Look inside one checkpoint, beside its unquantized baseline."
)


@app.callback()
def _root() -> None:
    pass


def _command(
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
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Labelled questions, a JSONL file.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block of the direction; selected by default.")
    ] = None,
    fit: Annotated[int, typer.Option(min=2, help="Fitting prompts of each label.")] = 128,
    select: Annotated[int, typer.Option(min=2, help="Selection prompts of each label.")] = 32,
    evaluate: Annotated[int, typer.Option(min=2, help="Held-out prompts of each label.")] = 100,
    causal: Annotated[bool, typer.Option(help="Steer by generation, patch neurons.")] = True,
    study: Annotated[
        bool, typer.Option("--study", help="Measure as arXiv 2606.10154 does; see docs/probes.md.")
    ] = False,
    refusal_token: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT|id:N", help="A refusal token, repeatable; found by default."),
    ] = None,
    refusal_preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published list: llama3, qwen, gemma, …")
    ] = None,
    instrument: Annotated[str, typer.Option(help="What reads refusals.")] = "hard",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    kernel: Annotated[str, typer.Option(metavar="dense|native")] = "dense",
    device: options.Device = "cpu",
    revision: options.Revision = None,
    expect: options.Expect = None,
    tokenizer: options.TokenizerFrom = None,
    chat_template: options.ChatTemplate = None,
    template: options.TemplateName = "chat",
    seed: Annotated[int, typer.Option(help="Chooses prompts and random controls.")] = 0,
    figure: Annotated[bool, typer.Option(help="Also draw PNG files.")] = True,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Stand-in for the signature: each command takes a part of it."""


_LEFT_OUT: dict[str, set[str]] = {
    "entropy": {"questions", "layer", "causal", "fit"},
    "refusal_direction": {"questions"},
    "calibration": {"layer", "causal", "fit"},
    "safety_neurons": {"questions", "layer"},
}
_HELP: dict[str, str] = {
    "entropy": "Entropy of the first token, KL, changed tokens, and the refusal margin lost.",
    "refusal_direction": "Refusal direction: selected, compared, steered.",
    "calibration": "Confidence against labels, and refusal probability against the answers.",
    "safety_neurons": "Quantization error of safety neurons, against others of their scale.",
}
_FILES = "\n\nResults go to --out (runs/probes/MODEL by default), the baseline's to its subfolder."


def _add(command: str, probes: tuple[ProbeName, ...], left_out: set[str], text: str) -> None:
    def run(**given: Any) -> None:
        _run(probes, given)

    whole = inspect.signature(_command, eval_str=True)
    kept = [p for name, p in whole.parameters.items() if name not in left_out]
    run.__signature__ = whole.replace(parameters=kept)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in kept}
    app.command(command, help=text + _FILES)(run)


for _name, _text in _HELP.items():
    _add(_name.replace("_", "-"), (_name,), _LEFT_OUT[_name], _text)  # type: ignore[arg-type]
_add("all", tuple(_HELP), set(), "All four probes over one observational pass.")  # type: ignore[arg-type]


def _run(probes: tuple[ProbeName, ...], given: dict[str, Any]) -> None:
    from mechprobe.experiments.probe_setup import ProbeRequest
    from mechprobe.experiments.probing import run_probes

    figure, json, out = given.pop("figure"), given.pop("json"), given.pop("out")
    if probes == ("safety_neurons",) and given["baseline"] is None:
        raise SpecError("safety neurons are compared with a baseline; name it with --baseline")
    folder = re.sub(r"[^\w.-]+", "-", given["model"]).strip("-")
    target = out or Path("runs/probes") / folder
    request = ProbeRequest(
        **given
        | {
            "out": target,
            "probes": probes,
            "kernel": _one_of("--kernel", given["kernel"], ("dense", "native")),
            "template": _one_of("--template", given["template"], ("chat", "raw")),
            "refusal_tokens": tuple(given.pop("refusal_token") or ()),
        }
    )
    with quiet() as screen:
        with Bar(screen.err, given["model"]) as bar, explained(target):
            found = run_probes(
                request,
                bar.begin,
                lambda line: screen.err.print(f"mechprobe: warning: {line}", soft_wrap=True),
                bar,
            )
            if figure:
                for name, result in found.items():
                    if not result.drawable:
                        (target / f"{name}.png").unlink(missing_ok=True)
                        continue
                    result.plot().savefig(target / f"{name}.png", dpi=120)
        from mechprobe.experiments.probe_loss import probe_loss
        from mechprobe.probes.saving import SCHEMA

        documents = {name: result.to_dict() for name, result in found.items()}
        loss = probe_loss(request, documents)
        for line in loss.warnings(str(request.baseline)) if loss else ():
            screen.err.print(f"mechprobe: warning: {line}", soft_wrap=True)
        if json:
            only = next(iter(documents.values()))
            several = {"schema": SCHEMA, **documents}
            facts = {"loss": loss and loss.as_dict(), "files": str(target)}
            screen.document((only if len(found) == 1 else several) | facts)
        else:
            for name, result in found.items():
                screen.out.print(result)
                if loss and (blind := loss.beside(documents[name])):
                    screen.out.print(blind, style="bold", soft_wrap=True)
                screen.out.print()
            screen.out.print(f"Files: {target}/")
    if request.baseline is not None and loss is None and not json:
        say_error(
            "whether refusals were lost was not looked at: probe calibration, or all without "
            "--study, lets both checkpoints answer"
        )
    if unmet := {name: result.unmet for name, result in found.items() if result.unmet}:
        lacking = "; ".join(
            f"{name.replace('_', ' ')}: {', '.join(parts)}" for name, parts in unmet.items()
        )
        say_error(f"not measured: {lacking}; `not_measured` in the results says why")
    if loss and loss.lost:
        say_error(f"{request.model}: {loss.said()}")
        raise typer.Exit(ExitCode.REGRESSION)
    if unmet:
        raise typer.Exit(ExitCode.NOT_MEASURED)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise SpecError(f"{option} {value}: use {' or '.join(allowed)}")
    return value
