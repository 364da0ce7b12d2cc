"""AWQ and GPTQ checkpoints, written by GPTQModel or AutoAWQ in a process of their own.

GPTQModel 7.6 ends the whole interpreter (`os._exit(1)`) when one of its worker threads fails, as
it does for AWQ of Gemma 2; a run must outlive that. The process also keeps its several hundred
lines of progress, its logger and environment changes and its threads out of ours.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from mechprobe.errors import CheckpointError, MissingExtraError
from mechprobe.models.weights import TensorEntry
from mechprobe.progress import Progress, silent

Writer = Literal["gptqmodel", "autoawq"]
THREADS: Final = 2
"""Of every sum that the writers take on a CPU, whatever the machine has: GPTQ's Hessians differ in
their last bits with the number of threads, and its rounding then takes another path."""
_ANY_X86: Final = {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Of the writers on a CPU: each kind of processor otherwise takes sums of its own (as above). No
other mode of MKL holds on AMD; the price is not measurable beside the rest."""
_NAMES: Final = {"gptqmodel": "GPTQModel", "autoawq": "AutoAWQ"}
_EXTRAS: Final = {"gptqmodel": "quant", "autoawq": "autoawq"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights are rounded."""

    method: Literal["awq", "gptq"]
    bits: int = 4
    group_size: int = 128
    """Input features that share a scale; -1 is a whole row."""
    symmetric: bool = True
    desc_act: bool = False


def fitting_group_size(tensors: Iterable[TensorEntry]) -> int:
    """Return the first of 128, 64 and 32 that divides every matrix's width; 128 without one."""
    widths = {entry.shape[1] for entry in tensors if len(entry.shape) == 2}
    fitting = (size for size in (128, 64, 32) if all(width % size == 0 for width in widths))
    return next(fitting, 128)


@dataclass(frozen=True, slots=True)
class Job:
    """What the writer's process is asked for."""

    folder: str
    out: str
    writer: Writer
    scheme: Scheme
    ids: list[list[int]]
    """Calibration prompts as token ids."""
    dtype: str
    """torch's name of the type that unquantized tensors keep."""
    device: str
    seed: int


def writer_version(writer: Writer) -> str:
    """The writer's installed version.

    Raises:
        MissingExtraError: It is not installed.
        CheckpointError: There is no such writer.
    """
    if writer not in _NAMES:
        raise CheckpointError(f"writer {writer!r} is unknown; gptqmodel and autoawq are")
    try:
        return importlib.metadata.version(writer)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"{writer} is not installed; run: pip install 'mechprobe[{_EXTRAS[writer]}]'"
        ) from error


def write(job: Job, source: str, *, verbose: bool = False, progress: Progress = silent) -> None:
    """Run a writer to its end.

    Args:
        job: What to write; the tokenizer is the folder's.
        source: What the folder is called in messages.
        verbose: Show what the writer prints, on stderr.
        progress: Told of layers done and in all, by GPTQModel.

    Raises:
        CheckpointError: The scheme is not the writer's, or the writer failed; the message holds
            the last line it said.
    """
    scheme = job.scheme
    if job.writer == "autoawq" and (scheme.method, scheme.bits) != ("awq", 4):
        raise CheckpointError("AutoAWQ writes 4-bit AWQ alone; use writer='gptqmodel'")
    environment = dict(os.environ)
    if job.device == "cpu":
        environment |= _ANY_X86 | _atens_kernels()
    environment.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it fails on two cores without it
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory(prefix="mechprobe-") as scratch, _told(progress) as pipe:
        # Its tokenizer helper makes folders wherever these point.
        environment.setdefault("HF_HOME", scratch)
        done = subprocess.run(
            [sys.executable, "-m", "mechprobe.models.quantize_worker", str(pipe)],
            pass_fds=[pipe],
            input=json.dumps(asdict(job)),
            stdout=sys.stderr.fileno() if verbose else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            check=False,
        )
    if verbose:
        sys.stderr.write(done.stderr)
    if done.returncode or not (Path(job.out) / "config.json").is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].replace(job.folder, source) if lines else f"exit status {done.returncode}"
        raise CheckpointError(
            f"{source}: {_NAMES[job.writer]} cannot quantize it to {scheme.method.upper()} "
            f"{scheme.bits}-bit: {said}"
        )


def _atens_kernels() -> dict[str, str]:
    """Have ATen use AVX2 wherever there is AVX2, AVX-512 or not."""
    import torch

    return {"ATEN_CPU_CAPABILITY": "avx2"} if torch.cpu._is_avx2_supported() else {}


@contextmanager
def _told(progress: Progress) -> Iterator[int]:
    """Yield the end of a pipe to which a child writes `DONE TOTAL` lines."""
    ours, theirs = os.pipe()

    def listen() -> None:
        with os.fdopen(ours) as lines:
            for line in lines:
                done, _, total = line.partition(" ")
                progress(int(done), int(total))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        listener.join()
