"""Quantize a 16-bit GGUF with llama.cpp's own quantizer."""

from __future__ import annotations

import importlib.metadata
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
from mechprobe.models.gguf_info import FLOAT_LEVELS, read_gguf_info
from mechprobe.models.gguf_levels import LADDER, NEED_IMATRIX, level_named, level_numbers
from mechprobe.progress import Progress, silent

_BINDING: Final = """
import sys
import cyllama.llama.llama_cpp as llama
params = llama.LlamaModelQuantizeParams()
params.ftype = int(sys.argv[3])
params.nthread = int(sys.argv[4])
try:
    llama.model_quantize(sys.argv[1], sys.argv[2], params)
except RuntimeError:
    sys.exit(1)
"""
"""In a process of its own: a failed assertion in llama.cpp ends the process it runs in. Its last
line says why it failed; the exception does not."""


_TENSOR: Final = re.compile(r"\[ *(\d+)/ *(\d+)\]")
"""How llama.cpp begins the line of each tensor: its number and how many there are."""


_BY_HAND: Final = "write it with llama.cpp's llama-quantize, and name that .gguf as source"


def require_level(text: str) -> str:
    """Return a level in llama.cpp's spelling.

    Raises:
        CheckpointError: llama.cpp has none of this name; the message lists those it has.
    """
    level = level_named(text)
    if level is None:
        raise CheckpointError(
            f"GGUF level {text!r} is unknown; the ladder is {', '.join(LADDER)}, others: "
            f"{', '.join(sorted(set(level_numbers()) - set(LADDER)))}"
        )
    return level


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
        if "imatrix" in last:
            last += f" {_BY_HAND}"
        raise CheckpointError(f"{what} failed: {last}")


def _info(path: Path, name: str) -> QuantInfo:
    """The precision of a file that goes by a name of its own in messages."""
    try:
        return read_gguf_info(path)
    except CheckpointError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def require_no_imatrix(level: str) -> None:
    """Refuse a level that llama.cpp writes only with an importance matrix.

    Raises:
        CheckpointError: It is one.
    """
    if level in NEED_IMATRIX:
        raise CheckpointError(f"{level} requires an importance matrix (imatrix); {_BY_HAND}")


def require_unquantized(f16: Path, source: str) -> None:
    """Refuse a file that would be rounded a second time.

    Raises:
        CheckpointError: It is quantized already, or broken.
    """
    if (found := _info(f16, source).precision) not in FLOAT_LEVELS:
        raise CheckpointError(
            f"{source}: is {found}; quantize from the F16 file, a second rounding would "
            "measure something else"
        )


def require_tool() -> str | None:
    """Return the path of `llama-quantize`; None where cyllama's binding of it is used.

    Raises:
        MissingExtraError: Neither is there.
    """
    program = shutil.which("llama-quantize")
    if program is None:
        require("cyllama", "quant")
    return program


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
        level: llama.cpp's name of the level, see `gguf_levels`.
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
    level = require_level(level)
    source = source or str(f16)
    require_unquantized(f16, source)
    threads = str(os.cpu_count() or 1)
    program = require_tool()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    names = {f16: "the source", temporary: "the result"}
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if program is not None:
            tool, version = "llama-quantize", _program_version(program)
            command = [program, str(f16), str(temporary), level, threads]
            _run(command, f"{source}: llama-quantize", names, progress)
        else:
            tool, version = "cyllama", importlib.metadata.version("cyllama")
            arguments = [str(f16), str(temporary), str(level_numbers()[level]), threads]
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
