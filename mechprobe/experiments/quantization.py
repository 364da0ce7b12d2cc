"""Quantizing for everybody who names no calibration prompts: command, run and Python alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mechprobe.errors import PromptFileError
from mechprobe.models.calibration import Calibration
from mechprobe.models.export import TARGETS as EXPORTS
from mechprobe.models.load import require_device
from mechprobe.models.makeable import TARGETS, require_makeable
from mechprobe.models.quantize import quantize as write_quantized
from mechprobe.models.quantize_gguf import require_level
from mechprobe.models.source import resolve_source
from mechprobe.preflight import Problems, require_writable
from mechprobe.textfiles import read_text

if TYPE_CHECKING:
    from mechprobe.models.quantize_awq_gptq import Writer

_ORGANISM_PROMPTS: Final = 64


def needs_calibration(to: str) -> bool:
    """Return whether a target is made by looking at prompts: AWQ and GPTQ are, GGUF levels not."""
    return to.lower() in TARGETS


def default_calibration(source: str, seed: int = 0) -> Calibration:
    """Return the calibration prompts of a model for which none were given.

    Args:
        source: Any source of a model. An organism, or a control made from one, gets harmless
            training requests of its world, any other model the built-in harmless ones of the
            train split.
        seed: Of an organism's requests.
    """
    from mechprobe.controls import is_of_world

    if not is_of_world(source):
        from mechprobe.behavior import load_builtin

        texts = load_builtin().texts("harmless", "train")
        return Calibration("builtin harmless train", tuple(texts))
    from mechprobe.organisms.world import requests

    twins = requests("train", _ORGANISM_PROMPTS, seed)
    harmless = tuple(request.text for request in twins if request.label == "harmless")
    return Calibration(f"organism world, harmless, train, seed {seed}", harmless)


def _check(problems: Problems, model: str, to: str, out: Path, device: str, writer: Writer) -> None:
    """Take down what is wrong with a request, as far as headers and installed tools show."""
    with problems.of("output"):
        require_writable(out, folder=out.suffix.lower() != ".gguf")
    with problems.of("device"):
        if device != "cpu":
            require_device(device)
    with problems.of("quantizer"):
        if to.lower() not in TARGETS and to.upper() not in EXPORTS:
            require_level(to)
    with problems.of("source"):
        source = resolve_source(model)
        with problems.of("quantizer"):
            require_makeable(source, to, writer)


def _calibration(given: Sequence[str] | Path | None) -> Sequence[str] | None:
    """The prompts, read where a file is given."""
    if not isinstance(given, Path):
        return given
    if given.suffix in (".jsonl", ".ndjson"):
        from mechprobe.behavior import load_prompts

        return [record.text for record in load_prompts(given)]
    return [line for line in read_text(given, PromptFileError).split("\n") if line.strip()]


def quantize(
    model: str | Path,
    to: str,
    out: str | Path,
    *,
    calibration: Sequence[str] | Path | None = None,
    calibration_name: str | None = None,
    device: str = "cpu",
    writer: Writer = "gptqmodel",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write a quantized checkpoint, whole or not at all, with a record of how it was made.

    Example:
        >>> mp.quantize("org/Model", "gptq", "model-gptq")                # doctest: +SKIP

    Args:
        model: Any source: an unquantized folder or a `.gguf`. Of a quantized `.gguf` the result
            records what it was dequantized from.
        to: `awq`, `gptq`, `gptq-int8`, or any level that llama.cpp writes: `F16`, `Q4_0`, ….
            `FP16` and `FP32` are the folder that `mechprobe.export` writes.
        out: The folder to write; for GGUF levels a `.gguf` file, or a folder to put one in.
        calibration: User messages for AWQ and GPTQ, or a file of them, one a line or JSONL; None
            takes `default_calibration`.
        calibration_name: What the record calls them.
        seed: Of default prompts and writer.
        device: Where the quantizer computes.
        writer: As of `mechprobe.models.quantize.quantize`.
        options: Of the same: `group_size`, `symmetric`, `desc_act`, …

    Returns:
        `out`, or the `.gguf` file inside it.

    Raises:
        CheckpointError: The model is quantized already, the target is unknown, `out` holds
            something, or the writer fails.
        MissingExtraError: The writer is not installed.
        RunDirectoryError: `out` cannot be written.
    """
    out, problems, texts = Path(out), Problems(), None
    with problems.of("prompts"):
        texts = _calibration(calibration)
    _check(problems, str(model), to, out, device, writer)
    problems.require_none()
    if texts is None and needs_calibration(to):
        chosen = default_calibration(str(model), seed)
        texts, calibration_name = chosen.texts, calibration_name or chosen.name
    return write_quantized(
        str(model),
        to,
        out,
        calibration=texts,
        calibration_name=calibration_name,
        device=device,
        writer=writer,
        seed=seed,
        **options,
    )
