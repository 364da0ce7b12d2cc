"""Quantize a 16-bit GGUF with llama.cpp's own quantizer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mechprobe.errors import CheckpointError, PrecisionError, require
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.gguf_info import read_gguf_info
from mechprobe.progress import Progress, silent

LADDER: Final = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
"""The levels of the published study; llama.cpp's other level names work as well."""

_BINDING: Final = """
import sys
import cyllama.llama.llama_cpp as llama
params = llama.LlamaModelQuantizeParams()
params.ftype = int(sys.argv[3])
params.nthread = int(sys.argv[4])
llama.model_quantize(sys.argv[1], sys.argv[2], params)
"""
"""In a process of its own: a failed assertion in llama.cpp ends the process it runs in."""


_TENSOR: Final = re.compile(r"\[ *(\d+)/ *(\d+)\]")
"""How llama.cpp begins the line of each tensor: its number and how many there are."""


def _file_type(level: str) -> int:
    from gguf.constants import LlamaFileType

    names = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind for kind in LlamaFileType}
    if level not in names or level == "GUESSED":
        raise CheckpointError(
            f"GGUF level {level!r} is unknown; the ladder is {', '.join(LADDER)}, others: "
            f"{', '.join(sorted(set(names) - set(LADDER) - {'GUESSED'}))}"
        )
    return int(names[level])


def _run(command: list[str], what: str, names: Mapping[Path, str], progress: Progress) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            lines += [line] if line.strip() else []
            if tensor := _TENSOR.match(line):
                progress(int(tensor[1]) - 1, int(tensor[2]))
    if running.returncode:
        last = lines[-1].strip() if lines else f"exit status {running.returncode}"
        for path, name in names.items():
            last = last.replace(str(path), name)
        raise CheckpointError(f"{what} failed: {last}")


def _info(path: Path, name: str) -> QuantInfo:
    """The precision of a file that goes by a name of its own in messages."""
    try:
        return read_gguf_info(path)
    except CheckpointError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def quantize_gguf(
    f16: Path,
    level: str,
    out: Path,
    *,
    source: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Quantize an F16 GGUF, whole or not at all, and record the tool in `<out>.json`.

    Args:
        f16: A 16- or 32-bit GGUF.
        level: llama.cpp's name of the level: one of `LADDER`, or Q4_0, Q3_K_M, IQ4_XS, ….
        out: The `.gguf` to write; replaced if it exists.
        source: What messages call the model; by default the path of `f16`.
        progress: Told of tensors done and in all.

    Returns:
        `out`.

    Raises:
        CheckpointError: Unknown level, broken input, or the quantizer failed.
        PrecisionError: What the quantizer wrote is not the level asked for.
        MissingExtraError: Neither `llama-quantize` on PATH nor cyllama.
    """
    number = _file_type(level)
    source = source or str(f16)
    if (found := _info(f16, source).precision) not in ("F16", "BF16", "F32"):
        raise CheckpointError(
            f"{source}: is {found}; quantize from the F16 file, a second rounding would "
            "measure something else"
        )
    threads = str(os.cpu_count() or 1)
    program = shutil.which("llama-quantize")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    names = {f16: "the source", temporary: "the result"}
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if program is not None:
            tool, version = "llama-quantize", _program_version(program)
            command = [program, str(f16), str(temporary), level, threads]
            _run(command, f"{source}: llama-quantize", names, progress)
        else:
            tool, version = "cyllama", str(require("cyllama", "quant").__version__)
            arguments = [str(f16), str(temporary), str(number), threads]
            command = [sys.executable, "-c", _BINDING, *arguments]
            _run(command, f"{source}: llama.cpp's quantizer", names, progress)
        info = _info(temporary, f"{source} as {level}")
        if info.precision != level:
            raise PrecisionError(f"{source} as {level}: {tool} wrote {info.precision}")
        record = {
            "writer": tool,
            "writer_version": version,
            "level": level,
            "bits_per_weight": round(info.bits_per_weight, 4),
            "tensor_types": dict(info.tensor_types),
            "notes": [*info.warnings, *info.notes],
        }
        sidecar = out.with_name(f"{out.name}.json")
        half_written = sidecar.with_name(f".{sidecar.name}.{os.getpid()}.tmp")
        half_written.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        half_written.replace(sidecar)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _program_version(program: str) -> str:
    """The first line that names a version or build; older programs print none."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if "version" in line or "build" in line), "unknown")
