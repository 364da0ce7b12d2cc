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
from mechprobe.experiments.fingerprints import fingerprint, unchanged
from mechprobe.experiments.rundir import read_json, spec_files
from mechprobe.textfiles import MalformedError, parse_yaml, read_text

PAGE, FIGURES = "report.html", "figures"
_REMADE = (PAGE, FIGURES)
"""Written anew by `mechprobe report`, and read by nothing."""
_ARRAYS = (".h5", ".npz", ".safetensors")
"""Large, and read by no table: compared when they are read, and often left out of a copy."""
_EVIDENCE = (
    "cells/*/*/*.json",
    *(f"cells/*/*/{kind}/*" for kind in ("scores", "generations", "judgements")),
    "cells/*/*/probes/**/*",
    "prompts/*",
    *("spec.yaml", "matrix.csv", "references.csv", "gaps.csv", "analysis.json"),
    *("labels.parquet", "factorial.csv", "factorial.json"),
)
"""What readers take numbers from, so that a step must vouch for it."""
_WORKING = ("forward_tokens.json", "questions.json", "refusals.json")
"""Of the folder of probes: passed on from one probe to the next, which reports what it used."""


def require_intact(source: Path) -> None:
    """Refuse a run directory, or a file of one, that is not as its run wrote it.

    Raises:
        RunDirectoryError: See `require_recorded`. Files that lie in no run are not looked at.
    """
    if source.is_dir():
        require_recorded(source)
    elif run := _run_of(source):
        require_recorded(run, source.absolute().relative_to(run).as_posix())


def unchecked(*sources: Path) -> list[str]:
    """What to say of run directories, and of files in them, that nothing can be held against."""
    runs = dict.fromkeys(
        (one if _is_run(one) else None) if one.is_dir() else _run_of(one) for one in sources
    )
    return [note for run in runs if run is not None and (note := unrecorded(run))]


def _run_of(file: Path) -> Path | None:
    """The run directory that a file lies in, its hidden folder copied or not."""
    return next((one for one in file.absolute().parents if _is_run(one)), None)


def _is_run(folder: Path) -> bool:
    named = (folder / "spec.yaml").exists() and (folder / "cells").is_dir()
    return named or (folder / ".steps").is_dir()


def require_recorded(path: Path, part: str = "") -> None:
    """Refuse a run directory in which a file is not as its step wrote it, or is of no step.

    Args:
        path: The run directory.
        part: A file or folder in it that is about to be read; activations and other arrays in it
            are compared too, and what is missing is left to its reader. Without it everything
            but arrays is compared.

    Raises:
        RunDirectoryError: A file differs, is missing or was added, or no finished step vouches for
            it; the message names it.
    """
    require_unchanged(path, part)
    if not (path / ".steps").is_dir():
        return
    known = {name for name, _ in _recorded(path)}
    left = _left_by_failures(path)
    for pattern in _EVIDENCE:
        for file in sorted(path.glob(pattern)):
            name = file.relative_to(path).as_posix()
            if name in known or not _counts(file, name, part):
                continue
            if not any(_inside(name, one) for one in left):
                raise _changed(file, "no finished step of the run vouches for it")


def require_unchanged(path: Path, part: str = "") -> None:
    """Like `require_recorded` for a run that is going on, some of whose files have no step yet.

    Raises:
        RunDirectoryError: A file that a step finished differs, is missing or was added.
    """
    for name, seen in _recorded(path):
        file = path / name
        if not _inside(name, part) or name in _REMADE or (part and not file.exists()):
            continue
        if not part and file.suffix in _ARRAYS:
            continue
        if not file.exists():
            raise _changed(file, "missing")
        if not unchanged(file, seen):
            raise _changed(file, "damaged or changed since the run wrote it")


def _inside(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}/")


def _counts(file: Path, name: str, part: str) -> bool:
    """Whether a file is evidence, and read with this part of the run."""
    if not _inside(name, part) or (not part and file.suffix in _ARRAYS) or not file.is_file():
        return False
    passing = file.name.startswith(".") or file.suffix in (".tmp", ".lock")
    return not passing and not (file.parent.name == "probes" and file.name in _WORKING)


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
    """Every file that a finished step wrote, by its name in the run, and its fingerprint.

    The spec is among them, which no step writes: the copy beside the markers vouches for it.
    """
    spec, copy = spec_files(path)
    if copy.exists():
        yield spec.name, fingerprint(copy)
    for marker in sorted((path / ".steps").rglob("*.json")):
        if marker.name.endswith(".error.json"):
            continue
        outputs = read_json(marker).get("outputs")
        if not isinstance(outputs, dict):
            raise _changed(marker, "damaged")
        for name, seen in outputs.items():
            yield from _files(name, seen)


def _left_by_failures(path: Path) -> list[str]:
    """Files and folders that a step may have left before it failed."""
    found: list[str] = []
    for record in sorted((path / ".steps").rglob("*.error.json")):
        writes = read_json(record).get("writes", [])
        if not isinstance(writes, list) or not all(isinstance(one, str) for one in writes):
            raise _changed(record, "damaged")
        found += [one for one in writes if one]
    return found


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
