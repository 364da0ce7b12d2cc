"""Files that travel between a run directory and a node that does not see it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechprobe.experiments.ray_worker import Piece, pieces_of
from mechprobe.experiments.rundir import RunDirectory, explained
from mechprobe.experiments.sources import find_source
from mechprobe.experiments.steps import Step
from mechprobe.models.source import is_hub_source

_SOURCES = "sources"
"""Folder below the scratch folder where brought sources lie."""


def local_sources(steps: Sequence[Step]) -> dict[str, Path]:
    """What the parameters name that lies on this machine alone: checkpoints and task files."""
    found: dict[str, Path] = {}
    for step in steps:
        cell = step.params.get("cell") or {}
        texts = [cell.get("source"), step.params.get("tokenizer")]
        for text in texts:
            if text and text not in found and not is_hub_source(text):
                found[text] = find_source(text)[0].path
        asked = step.params.get("task")  # steps of judges name theirs, others hold its fields
        given = asked.get("source") if isinstance(asked, dict) else None
        if given and Path(given).is_file():
            found[given] = Path(given)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def inputs_of(
    steps: Sequence[Step], known: Mapping[str, Step], run: RunDirectory
) -> tuple[dict[str, Path], dict[str, str]]:
    """Every file that steps may read, by its path in the scratch folder, and where sources lie.

    Of a cell that is needed its whole folder goes, markers with it: probes read what other
    probes of it kept.
    """
    own = {step.name for step in steps}
    needs = dict.fromkeys(name for step in steps for name in step.needs if name not in own)
    folders = {name.rpartition("/")[0] for name in (*needs, *own) if name.startswith("cells/")}
    files: dict[str, Path] = {}
    for folder in sorted(folders):
        for part in (run / folder, run.path / ".steps" / folder):
            files |= {path.relative_to(run.path).as_posix(): path for path in _files_below(part)}
    for name in needs:
        if not name.startswith("cells/"):
            files[f".steps/{name}.json"] = run.marker(name)
            files |= {output: run / output for output in known[name].outputs}
    places: dict[str, str] = {}
    for i, (text, path) in enumerate(local_sources(steps).items()):
        place = f"{_SOURCES}/{i}/{path.name}"
        places[text] = place
        if path.is_file():
            files[place] = path
        else:
            files |= {f"{place}/{f.relative_to(path).as_posix()}": f for f in _files_below(path)}
    return {name: path for name, path in files.items() if path.suffix != ".tmp"}, places


def put_files(files: dict[str, Path], put: Callable[[bytes], Any]) -> dict[str, list[Any]]:
    """Files in pieces in the object store."""
    return {name: [put(p.content) for p in pieces_of(path, name)] for name, path in files.items()}


@dataclass
class Incoming:
    """Files of one cell on their way back; none is in its place before its step has ended."""

    run: RunDirectory
    name: str
    _names: dict[str, int] = field(default_factory=dict)

    @property
    def _folder(self) -> Path:
        return self.run.path / ".steps" / ".incoming" / self.name.replace("/", "~")

    def take(self, piece: Piece) -> None:
        """Keep a piece."""
        path = self._folder / piece.path
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb" if piece.offset == 0 else "r+b") as file:
                file.seek(piece.offset)
                file.write(piece.content)
        if piece.offset == 0:
            self._names[piece.path] = piece.written

    def settle(self, step: Step) -> None:
        """Move what a step wrote into the run directory, its marker last."""
        with explained(self.run.path):
            for output in step.outputs:
                if (self.run / output).is_dir():  # a folder that the step alone fills
                    shutil.rmtree(self.run / output)
            marker = self.run.marker(step.name).relative_to(self.run.path).as_posix()
            for name in sorted(self._names, key=lambda name: name == marker):
                target = self.run / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with (self._folder / name).open("rb") as file:
                    os.fsync(file.fileno())
                os.utime(file.name, ns=(self._names[name], self._names[name]))
                (self._folder / name).replace(target)
        self._names.clear()

    def drop(self) -> None:
        """Forget what did not come to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other cells are on their way
            self._folder.parent.rmdir()
        self._names.clear()
