"""What can be quantized to what, as far as headers and installed tools show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mechprobe.errors import CheckpointError
from mechprobe.models.export import TARGETS as EXPORTS
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_info import FLOAT_LEVELS, read_gguf_info
from mechprobe.models.gguf_names import architecture_of_file
from mechprobe.models.quantize_gguf import (
    require_level,
    require_no_imatrix,
    require_tool,
    require_unquantized,
)
from mechprobe.models.source import Source
from mechprobe.models.weight_files import weight_files

if TYPE_CHECKING:
    from mechprobe.models.quantize_awq_gptq import Writer

TARGETS: Final = ("awq", "gptq", "gptq-int8")
THROUGH: Final = "FP16"
"""As what a GGUF file is exported where something is made from it."""


def needs_export(source: Source, to: str) -> bool:
    """Whether a target is made from the folder that a source is exported as.

    Raises:
        CheckpointError: The GGUF file cannot be read.
    """
    if source.kind != "gguf" or to.upper() in EXPORTS:
        return False
    return to.lower() in TARGETS or read_gguf_info(source.path).precision not in FLOAT_LEVELS


def require_makeable(source: Source, to: str, writer: Writer = "gptqmodel") -> None:
    """Refuse what cannot be quantized, as far as headers and installed tools show.

    Args:
        source: The model.
        to: As in `quantize`.
        writer: As in `quantize`.

    Raises:
        CheckpointError: The source is a folder that is quantized already, or the target is unknown.
        ArchitectureError: Its architecture cannot be written as a GGUF.
        MissingExtraError: The tool is not installed.
    """
    from mechprobe.models.gguf_write import require_writable
    from mechprobe.models.quantize_awq_gptq import writer_version
    from mechprobe.models.quantized import read_claim

    if to.upper() in EXPORTS:
        return
    if needs_export(source, to):
        architecture_of_file(source.path, read_gguf(source.path).architecture)
        if to.lower() in TARGETS:
            writer_version(writer)
        else:
            require_no_imatrix(level := require_level(to))
            if level != "F16":
                require_tool()
        return
    if to.lower() not in TARGETS:
        makeable_level(source, to)
        if source.kind == "folder":
            weight_files(source.path)
            require_writable(source.path)
        return
    writer_version(writer)
    if (claim := read_claim(source.path)).method != "none":
        raise CheckpointError(
            f"{source.path}: is {claim.method.upper()} already; quantize from the 16-bit "
            "checkpoint, or dequantize it: mechprobe export"
        )
    weight_files(source.path)


def makeable_level(source: Source, to: str) -> str:
    """llama.cpp's name of a level, once its quantizer is there; F16 of a folder needs none."""
    level = require_level(to)
    require_no_imatrix(level)
    if source.kind == "gguf":
        require_unquantized(source.path, source.text)
    if (level, source.kind) != ("F16", "folder"):
        require_tool()
    return level
