"""Loading for the steps of a run; the heavy imports happen inside."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mechprobe.errors import CheckpointError, RunDirectoryError
from mechprobe.experiments.made import ensure_made, require_unchanged
from mechprobe.experiments.rundir import read_json
from mechprobe.experiments.sources import find_source
from mechprobe.experiments.steps import Task

if TYPE_CHECKING:
    from types import TracebackType

    from transformers import PreTrainedTokenizerBase

    from mechprobe.generation import Engine
    from mechprobe.models.checkpoint import Checkpoint, Kernel


class Loaded:
    """A checkpoint and the engine that runs it, released together."""

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None) -> None:
        self.checkpoint = checkpoint
        self._threads = threads
        self._stack = ExitStack()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What generates, opened at the first use."""
        if self._engine is None:
            from mechprobe.generation import open_engine

            self._engine = self._stack.enter_context(
                open_engine(self.checkpoint, threads=self._threads)
            )
        return self._engine

    def __enter__(self) -> Loaded:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine and let go of the weights."""
        self._engine = None
        self._stack.close()
        del self.checkpoint


def load_tokenizer(
    source: str, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a source, with a chat template from a file where one is given."""
    found, _ = find_source(source, revision)
    if found.kind == "gguf":
        from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer

        tokenizer = load_gguf_tokenizer(found.path)
    else:
        from mechprobe.models.tokenizer import load_tokenizer as load_folder

        tokenizer = load_folder(found.path)
    from mechprobe.models.tokenizer import set_chat_template

    set_chat_template(tokenizer, chat_template)
    return tokenizer


def checkpoint_path(task: Task) -> tuple[str, str | None]:
    """Source and revision of the step's cell, quantized now if the cache lacks it."""
    cell, recipe = task.step.params["cell"], task.step.params["recipe"]
    if recipe is None:
        return cell["source"], cell["revision"]
    made, _ = ensure_made(recipe, task.progress)
    return str(made), None


def held(task: Task, kernel: Kernel) -> Loaded:
    """The step's cell on the bench, loaded if it is not there already.

    Raises:
        CheckpointError: It cannot be loaded, or is no longer what the run began with.
    """

    def load() -> Loaded:
        from mechprobe import session

        params: dict[str, Any] = dict(task.step.params)
        source, revision = checkpoint_path(task)
        require_unchanged(params["cell"]["source"], params["cell"]["revision"], params["digest"])
        _require_memory(task, kernel)
        checkpoint = session.load(
            source,
            kernel=kernel,
            device=_device(task, kernel),
            revision=revision,
            expect=params["cell"]["precision"],
            tokenizer=params["tokenizer"],
        ).checkpoint
        _require_same_weights(task, checkpoint)
        # a result says what was measured, not where this machine keeps it
        named = params["cell"]["source"]
        if params["recipe"] is not None:
            named = f"{named} as {params['recipe']['to']}"
        return Loaded(replace(checkpoint, source=named), task.step.threads)

    cell = task.step.params["cell"]
    return task.bench.hold(f"{cell['model']}/{cell['precision']}/{kernel}", load)


def _device(task: Task, kernel: Kernel) -> str:
    """Where the graph runs; a native GGUF has none."""
    if kernel == "native" and task.step.params["engine"] == "llama.cpp":
        return "cpu"
    return str(task.step.params.get("device", "cpu"))


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def _require_memory(task: Task, kernel: Kernel) -> None:
    """Fail one cell rather than have the system kill the run."""
    if kernel == "native" and task.step.params["engine"] == "llama.cpp":
        return  # the file is mapped, not read
    needed, free = task.step.memory, free_memory()
    if needed > free:
        raise CheckpointError(
            f"{task.step.params['cell']['source']}: its {kernel} kernel needs at least "
            f"{needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are free; close something "
            "or use a larger machine"
        )


def _require_same_weights(task: Task, checkpoint: Checkpoint) -> None:
    folder = "/".join(task.step.name.split("/")[:-1])
    record = task.run / folder / "checkpoint.json"
    if task.step.name.endswith("/checkpoint") or not record.exists():
        return
    try:
        before = read_json(record)["digest"]
    except (RunDirectoryError, KeyError):
        return
    if before != checkpoint.digest:
        raise CheckpointError(
            f"{checkpoint.source}: its weights are not those the run began with; delete "
            f"{record.parent} and run again"
        )
