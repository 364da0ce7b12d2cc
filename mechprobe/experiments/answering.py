"""What `mechprobe generate` was asked for becomes prompts and an engine."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import MechprobeError, PromptFileError, SpecError
from mechprobe.experiments.generating import Questions
from mechprobe.experiments.loading import load_tokenizer
from mechprobe.experiments.probe_setup import prompt_source
from mechprobe.experiments.rendered import prompt_set, template_digest
from mechprobe.experiments.sources import find_source
from mechprobe.generation.api import Endpoint
from mechprobe.preflight import Problems, check_loadable
from mechprobe.textfiles import is_text

if TYPE_CHECKING:
    from mechprobe.behavior.tasks import Task as AskedTask
    from mechprobe.generation import Engine, Sampling
    from mechprobe.models.checkpoint import Kernel


@dataclass(frozen=True)
class GenerateRequest:
    """What `mechprobe generate` was asked for."""

    model: str
    engine: str | None
    """`transformers`, `llama.cpp`, the URL of a server, or None for what users run."""
    records: list[dict[str, Any]]
    """From `prompt_records`."""
    max_new_tokens: int
    sampling: Sampling | None
    fast: bool
    parallel: int | None
    threads: int | None
    kernel: Any
    device: str
    revision: str | None
    expect: str | None
    tokenizer: str | None
    chat_template: Path | None
    template: Any

    @property
    def texts(self) -> list[str]:
        """The user messages."""
        return [record["prompt"] for record in self.records]


def prompt_records(
    model: str,
    given: list[str] | None,
    source: str | None,
    n: int | None,
    task: AskedTask | None = None,
) -> list[dict[str, Any]]:
    """The prompts as rows; only those of a set have labels.

    Args:
        model: An organism answers about its own world by default, others the built-in requests.
        given: Texts.
        source: Of a prompt set, in place of texts.
        n: At most so many.
        task: What it asks, in place of texts and a set; see `mechprobe score`.

    Raises:
        SpecError: More than one of texts, source and task is given.
        PromptFileError: There are no prompts, or the source is malformed.
    """
    from mechprobe.behavior import load_prompts

    if sum(map(bool, (given, source, task))) > 1:
        options = "--prompt, --prompts and --task" if task else "--prompt and --prompts"
        raise SpecError(f"{options}: give one of them")
    if given:
        rows: list[dict[str, Any]] = [
            {"id": f"prompt-{number}", "prompt": text} for number, text in enumerate(given, 1)
        ]
    elif task:
        rows = [
            {"id": item.id, "cluster": item.cluster, "prompt": item.prompt}
            | ({"label": item.label} if item.label else {})
            for item in task.items
        ]
    else:
        named = prompt_source(model, source)
        world = named == "organism"
        found = prompt_set("organism", "test", 100, 0) if world else load_prompts(named)
        rows = [
            {"id": one.id, "label": one.label, "cluster": one.cluster, "prompt": one.text}
            for one in found
        ]
    if not rows:
        raise PromptFileError("no prompts were given; use --prompt TEXT or --prompts FILE")
    for row in rows[:n]:
        if not is_text(row["prompt"]):
            raise PromptFileError(
                f"prompt {row['id']}: holds half a character (a lone surrogate), which nobody can "
                "be sent; mend or remove it"
            )
    return rows[:n]


def _is_server(engine: str | None) -> bool:
    return engine is not None and engine.startswith(("http://", "https://"))


def open_request(asked: GenerateRequest) -> tuple[Questions, Engine, str | None]:
    """The prompts as the engine takes them, the engine, and the precision found.

    Raises:
        SpecError: Options that do not go together.
        MechprobeError: The checkpoint or its tokenizer cannot be used.
    """
    if _is_server(asked.engine):
        return (*_open_server(asked), None)
    return _open_local(asked)


def check_request(asked: GenerateRequest, problems: Problems) -> None:
    """Check the checkpoint and the template of a request, as far as headers show.

    Args:
        asked: Its prompts are not looked at.
        problems: Takes what is found.

    Raises:
        SpecError: Options that do not go together.
    """
    if asked.engine not in (None, "transformers", "llama.cpp") and not _is_server(asked.engine):
        raise SpecError(f"--engine {asked.engine}: use transformers, llama.cpp or a server's URL")
    with problems.of("prompts"):
        template_digest(str(asked.chat_template) if asked.chat_template else None)
    if not _is_server(asked.engine):
        gguf = False
        with contextlib.suppress(MechprobeError):  # what cannot be found is said below
            gguf = _is_gguf(asked)
        check_loadable(
            problems,
            asked.model,
            revision=asked.revision,
            expect=asked.expect,
            kernel=_kernel(asked, gguf),
            device=asked.device,
            tokenizer=asked.tokenizer,
        )


def _is_gguf(asked: GenerateRequest) -> bool:
    return find_source(asked.model, asked.revision)[0].kind == "gguf"


def _kernel(asked: GenerateRequest, gguf: bool) -> Kernel:
    """The kernel of a request: native unless it names one, or transformers for a GGUF file."""
    named: Kernel | None = asked.kernel
    return named or ("dense" if gguf and asked.engine == "transformers" else "native")


def _open_local(asked: GenerateRequest) -> tuple[Questions, Engine, str]:
    gguf = _is_gguf(asked)
    kernel = _kernel(asked, gguf)
    if asked.engine == "transformers" and gguf and kernel == "native":
        raise SpecError(f"{asked.model}: transformers runs a GGUF file with --kernel dense")
    in_llama_cpp = gguf and kernel == "native"
    if asked.engine == "llama.cpp" and not in_llama_cpp:
        raise SpecError(
            f"{asked.model}: llama.cpp runs GGUF files with their native kernel; write one with: "
            "mechprobe quantize MODEL --to F16 --out FILE.gguf"
        )
    if asked.fast and not in_llama_cpp:
        raise SpecError("--fast: only llama.cpp has it; transformers batches the same every time")
    from mechprobe import session
    from mechprobe.generation import open_engine

    model = session.load(
        asked.model,
        kernel=kernel,
        device=asked.device,
        revision=asked.revision,
        expect=asked.expect,
        tokenizer=asked.tokenizer,
        chat_template=str(asked.chat_template) if asked.chat_template else None,
    )
    batch = model.encode(asked.texts, template=asked.template)
    choices: dict[str, Any] = {"fast": True} if asked.fast else {}
    if asked.parallel:
        choices["parallel" if in_llama_cpp else "batch_size"] = asked.parallel
    engine = open_engine(model.checkpoint, threads=asked.threads, **choices)
    precision = model.quant.precision
    row = f"{asked.model}/{precision}@{engine.name}"
    return _questions(asked, batch, batch.digest, row, model.checkpoint.digest), engine, precision


def _open_server(asked: GenerateRequest) -> tuple[Questions, Engine]:
    from mechprobe.generation.server import ServerEngine
    from mechprobe.models.rendering import encode

    if asked.fast:
        raise SpecError("--fast: only llama.cpp in this process has it; a server batches by itself")
    if asked.threads:
        raise SpecError("--threads: a server computes with its own; leave it out")
    endpoint = Endpoint.parse(f"openai:{asked.model}@{asked.engine}")
    named = asked.tokenizer
    template = str(asked.chat_template) if asked.chat_template else None
    tokenizer = load_tokenizer(named, asked.revision, template) if named else None
    given: Any = tuple(asked.texts)
    digest = "text:" + hashlib.sha256(json.dumps(given).encode()).hexdigest()
    if tokenizer is not None:
        given = encode(tokenizer, asked.texts, template=asked.template)
        digest = given.digest
    choices: dict[str, Any] = {"concurrency": asked.parallel} if asked.parallel else {}
    engine = ServerEngine(endpoint, tokenizer, **choices)
    return _questions(asked, given, digest, f"{asked.model}@server", str(endpoint)), engine


def _questions(
    asked: GenerateRequest, given: Any, digest: str, row: str, weights: str
) -> Questions:
    return Questions(
        records=asked.records,
        given=given,
        digest=digest,
        row=row,
        weights=weights,
        max_new_tokens=asked.max_new_tokens,
        sampling=asked.sampling,
        fast=asked.fast and asked.sampling is not None and not asked.sampling.greedy,
    )
