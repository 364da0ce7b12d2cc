"""What the records beside a checkpoint say of how it was written here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from mechprobe.errors import CheckpointError
from mechprobe.models.weights import read_json

QUANTIZED: Final = "mechprobe_quantize.json"
EXPORTED: Final = "mechprobe_export.json"


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a folder, or those beside a GGUF file; other programs' are passed over.

    Args:
        path: A folder or `.gguf` file that may have been written here.
    """
    folder, own = (path, EXPORTED) if path.is_dir() else (path.parent, f"{path.name}.json")
    for name in (own, QUANTIZED):
        with suppress(CheckpointError):
            yield read_json(folder / name)


def notes_of_writing(path: Path) -> tuple[str, ...]:
    """What was not compared when a GGUF was written here."""
    for record in records(path):
        with suppress(KeyError, TypeError, AttributeError):
            notes = record.get("f16", record)["compared"]["notes"]
            return tuple(note for note in notes if isinstance(note, str))
    return ()


def dequantized_from(path: Path) -> str | None:
    """Return the precision that weights were dequantized from; None where no record names it."""
    origins = (record.get("dequantized_from") for record in records(path))
    return next((origin for origin in origins if isinstance(origin, str)), None)


def origin_warnings(path: Path) -> tuple[str, ...]:
    """Say what a checkpoint's weights were dequantized from; nothing where no record says so."""
    origin = dequantized_from(path)
    return (f"dequantized from {origin}, not made from the original weights",) if origin else ()
