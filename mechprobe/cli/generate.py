"""`mechprobe generate`: answers of one checkpoint through any engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli import options
from mechprobe.cli.parts import Limit, PromptsFile, Texts
from mechprobe.cli.score import Options, Source
from mechprobe.cli.terminal import Screen, quiet, say_error
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode
from mechprobe.progress import Bar

if TYPE_CHECKING:
    from mechprobe.experiments.answering import GenerateRequest
    from mechprobe.experiments.generating import Answers, Questions
    from mechprobe.generation import Engine

_WITHHELD = "(a harmful request; its answers go only into a file: --out FILE)"


def generate(
    model: options.Model,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="transformers|llama.cpp|URL",
            help="By default what users run: llama.cpp for a GGUF, else transformers. With the URL "
            "of an OpenAI-compatible server, --model is its name there, and --tokenizer renders "
            "the prompts to token ids; without one the server gets text.",
        ),
    ] = None,
    prompt: Texts = None,
    prompts: PromptsFile = None,
    task: Annotated[
        str | None,
        typer.Option(help="Ask a task's items instead; `mechprobe score` reads the answers."),
    ] = None,
    source: Source = None,
    option: Options = None,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="JSONL; a killed run goes on there."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="1 keeps every token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 keeps every token.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="llama.cpp: fill its slots as they come free when answers are sampled; reruns may "
            "then differ where two tokens are nearly equal.",
        ),
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Batch size, llama.cpp's slots, or requests at a time."),
    ] = None,
    threads: options.Threads = None,
    kernel: Annotated[
        str | None, typer.Option(metavar="native|dense", help="native by default.")
    ] = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    expect: options.Expect = None,
    tokenizer: options.TokenizerFrom = None,
    chat_template: options.ChatTemplate = None,
    template: options.TemplateName = "chat",
    json: options.Json = False,
) -> None:
    """Answers, greedy or sampled. Those to harmful requests go only into the file of --out."""
    from mechprobe.experiments.answering import (
        GenerateRequest,
        check_request,
        open_request,
        prompt_records,
    )
    from mechprobe.experiments.scoring import asked_task
    from mechprobe.generation.base import Sampling

    if (source or option) and not task:
        raise SpecError("--source and --option go with --task; prompts of a file: --prompts FILE")
    asked_items = asked_task(task, source, limit, option or ()) if task else None
    drawn = Sampling(temperature, top_p, top_k, samples, seed)
    asked = GenerateRequest(
        model=model,
        engine=engine,
        records=[],
        max_new_tokens=max_new_tokens,
        sampling=None if drawn == Sampling(seed=seed) else drawn,
        fast=fast,
        parallel=parallel,
        threads=threads,
        kernel=_one_of("--kernel", kernel, (None, "native", "dense")),
        device=device,
        revision=revision,
        expect=expect,
        tokenizer=tokenizer,
        chat_template=chat_template,
        template=_one_of("--template", template, ("chat", "raw")),
    )
    with quiet() as screen:
        from mechprobe.experiments.generating import answer_all
        from mechprobe.preflight import Problems, require_writable

        problems = Problems()
        with problems.of("output"):
            if out is not None:
                require_writable(out, folder=False)
        with problems.of("prompts"):
            records = prompt_records(model, prompt, prompts, None if task else limit, asked_items)
            asked = replace(asked, records=records)
        check_request(asked, problems)
        problems.require_none()
        with Bar(screen.err, f"loading {model}") as bar:
            questions, runs, precision = open_request(asked)
            with runs:
                began = time.monotonic()
                bar.begin("answers")
                found = answer_all(runs, questions, out, bar)
                seconds = time.monotonic() - began
                summary = _summary(asked, questions, runs, precision, found, seconds)
        _show(screen, summary, found, out, json)
    if found.missing:
        total = found.missing + len(found.rows)
        say_error(
            f"{found.missing} of {total} answers are missing, the first because: "
            f"{found.problem}; the same command asks for them again"
        )
        raise typer.Exit(ExitCode.NOT_MEASURED)


def _one_of(option: str, value: str | None, allowed: Sequence[str | None]) -> Any:
    if value not in allowed:
        names = " or ".join(sorted(filter(None, allowed)))
        raise SpecError(f"{option} {value}: use {names}")
    return value


def _summary(
    asked: GenerateRequest,
    questions: Questions,
    engine: Engine,
    precision: str | None,
    found: Answers,
    seconds: float,
) -> dict[str, Any]:
    tokens = sum(row["new_tokens"] for row in found.rows)
    return {
        "model": asked.model,
        "precision": precision,
        "engine": engine.name,
        "threads": sorted({row["threads"] for row in found.rows if row.get("threads")}),
        "prompts": questions.digest,
        "parity": sorted({row["parity"] for row in found.rows}),
        "sampling": asdict(asked.sampling) if asked.sampling else "greedy",
        "answered": len(found.rows),
        "missing": found.missing,
        "reused": len(found.rows) - found.fresh,
        "stops": dict(Counter(row["stop"] for row in found.rows)),
        "new_tokens": tokens,
        "seconds": round(seconds, 3),
        "retries": getattr(engine, "retries", 0),
        "notes": [*getattr(questions.given, "notes", ()), *engine.notes],
    }


def _show(
    screen: Screen, summary: Mapping[str, Any], found: Answers, out: Path | None, json: bool
) -> None:
    for note in summary["notes"]:
        screen.err.print(f"mechprobe: {note}", soft_wrap=True)
    if out is not None:
        if json:
            screen.document({**summary, "out": str(out)})
            return
        stops = ", ".join(f"{n} {stop}" for stop, n in summary["stops"].items())
        again = f", {summary['reused']} of them there already" if summary["reused"] else ""
        screen.out.print(
            f"{summary['answered']} answers{again} ({stops}). File: {out}", soft_wrap=True
        )
        return
    if json:
        names = ("prompt", "sample", "text", "stop")
        answers = [{name: row[name] for name in names} for row in _shown(found)]
        screen.document({**summary, "answers": answers})
        return
    for row in _shown(found):
        screen.out.print(f"> {row['prompt']}", style="dim", soft_wrap=True)
        screen.out.print(_WITHHELD if row["text"] is None else row["text"], soft_wrap=True)
        screen.out.print()


def _shown(found: Answers) -> list[dict[str, Any]]:
    """The answers without the text of those to harmful requests."""
    return [{**r, "text": None} if r.get("label") == "harmful" else r for r in found.rows]
