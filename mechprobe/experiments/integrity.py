"""Files of a run directory compared with what its steps wrote, whenever one is read.

`mechprobe run` makes a file anew that is not as its step left it. Whoever only reads a run
(analyze, report, judge, agreement, a notebook) refuses such a file instead: scores that were edited
since must not become a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.fingerprints import unchanged
from mechprobe.experiments.rundir import read_json
from mechprobe.textfiles import MalformedError, parse_yaml, read_text

PAGE, FIGURES = "report.html", "figures"
_REMADE = (PAGE, FIGURES)
"""Written anew by `mechprobe report`, and read by nothing."""
_ARRAYS = (".h5", ".npz", ".safetensors")
"""Large, and read by no table: compared when they are read, and often left out of a copy."""


def require_intact(source: Path) -> None:
    """Refuse a run directory, or a file of one, that is not as its run wrote it.

    Raises:
        RunDirectoryError: See `require_recorded`. Files that lie in no run are not looked at.
    """
    if source.is_dir():
        require_recorded(source)
        return
    file = source.absolute()
    run = next((one for one in file.parents if (one / ".steps").is_dir()), None)
    if run is not None:
        require_recorded(run, file.relative_to(run).as_posix())


def require_recorded(path: Path, part: str = "") -> None:
    """Refuse a run directory in which a file is not as its step wrote it.

    Args:
        path: The run directory.
        part: A file or folder in it that is about to be read; activations and other arrays in it
            are compared too, and what is missing is left to its reader. Without it everything
            but arrays is compared.

    Raises:
        RunDirectoryError: A file differs, is missing or was added; the message names it.
    """
    for name, seen in _recorded(path):
        file = path / name
        inside = not part or name == part or name.startswith(f"{part}/")
        if not inside or name in _REMADE or (part and not file.exists()):
            continue
        if not part and file.suffix in _ARRAYS:
            continue
        if not file.exists():
            raise _changed(file, "missing")
        if not unchanged(file, seen):
            raise _changed(file, "damaged or changed since the run wrote it")


def unrecorded(path: Path) -> str | None:
    """What to say of a run directory that was copied without its hidden `.steps`."""
    if (path / ".steps").is_dir():
        return None
    return (
        f"{path} holds no record of what its run wrote (.steps is missing: copy hidden folders "
        "too), so that its files could not be checked."
    )


def read_spec(path: Path) -> dict[str, Any]:
    """Read the spec that a run directory belongs to.

    Raises:
        RunDirectoryError: It is no run directory, or its spec is damaged.
    """
    file = path / "spec.yaml"
    if not file.exists():
        raise RunDirectoryError(f"{path}: not a run directory (it has no spec.yaml)")
    try:
        found = parse_yaml(read_text(file, RunDirectoryError))
    except MalformedError as error:
        raise RunDirectoryError(f"{error.at(file)}; put the spec of the run back") from error
    if not isinstance(found, dict):
        raise RunDirectoryError(f"{file}: damaged: no mapping of fields; put the run's spec back")
    return found


def _recorded(path: Path) -> Iterator[tuple[str, Any]]:
    """Every file that a finished step wrote, by its name in the run, and its fingerprint."""
    for marker in sorted((path / ".steps").rglob("*.json")):
        if marker.name.endswith(".error.json"):
            continue
        outputs = read_json(marker).get("outputs")
        if not isinstance(outputs, dict):
            raise _changed(marker, "damaged")
        for name, seen in outputs.items():
            yield from _files(name, seen)


def _files(name: str, seen: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(seen, dict):
        yield name, seen
        return
    for inner, one in seen.items():
        yield from _files(f"{name}/{inner}", one)


def _changed(file: Path, said: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{file}: {said}; run the same command again (mechprobe run) to make it anew"
    )
