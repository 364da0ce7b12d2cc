"""The identity of what a run reads, found without torch: step keys are made of this.

Digests of large files are remembered on disk by path, size and modification time, so that a
second run of a large matrix does not read every weight again. The digest itself is of bytes alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mechprobe.cache import cache_folder
from mechprobe.errors import CheckpointError
from mechprobe.experiments.rundir import write_json
from mechprobe.models import export
from mechprobe.models.source import Source, is_fetched, resolve_source
from mechprobe.models.weight_files import weight_files
from mechprobe.textfiles import parse_json

_LARGE = 64 << 20
_READ = (".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".bin")
_BLOCK = 1 << 22


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    seen = path.stat()
    if seen.st_size < _LARGE:
        return _small_digest(path, seen.st_size, seen.st_mtime_ns)
    fingerprint = f"{path.resolve()}\0{seen.st_size}\0{seen.st_mtime_ns}"
    memo = cache_folder() / "digests" / hashlib.sha256(fingerprint.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(parse_json(memo.read_text(encoding="utf-8"))["sha256"])
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    write_json(memo, {"file": str(path), "sha256": total.hexdigest()})
    return total.hexdigest()


@lru_cache(maxsize=512)
def _small_digest(path: Path, size: int, written: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_digest(source: Source) -> str:
    """SHA-256 over the names and contents of every file that loading may read, hex.

    Stale neighbours of the weight files are none of them.
    """
    if source.kind == "gguf":
        return file_digest(source.path)
    unread: tuple[Path, ...] = ()
    with contextlib.suppress(CheckpointError):  # a tokenizer's folder holds no weights
        unread = weight_files(source.path).passed_over
    files = sorted(
        f for f in source.path.iterdir() if f.suffix in _READ and f.is_file() and f not in unread
    )
    content = [(file.name, file_digest(file)) for file in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_away(text: str, revision: str | None = None) -> bool:
    """Whether a source is still to be fetched: nothing is known of it yet.

    A name under a folder of this machine is a path with a mistake in it.
    """
    if text.startswith("organism:") or not is_fetched(text):
        return False
    if not text.startswith("hf:") and Path(text).parent.is_dir():
        return False
    try:
        resolve_source(text, revision=revision, local_only=True)
    except CheckpointError:
        return True
    return False


def weight_bytes(source: Source) -> int:
    """Size of the weight files.

    Raises:
        CheckpointError: The folder holds no weights that can be read.
    """
    files = (source.path,) if source.kind == "gguf" else weight_files(source.path).files
    return sum(file.stat().st_size for file in files)


def find_source(
    text: str, revision: str | None = None, *, local_only: bool = False
) -> tuple[Source, str]:
    """Resolve a source and take its digest.

    Raises:
        CheckpointError: It is missing, gated, or out of reach; with `local_only`, not here yet.
    """
    source = resolve_source(text, revision=revision, local_only=local_only)
    return source, source_digest(source)


def writer_versions(to: str) -> dict[str, Any]:
    """Versions of what makes a quantized checkpoint, without importing it."""
    import shutil
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    if to in export.TARGETS:
        return {"export": export.VERSION}
    if to.startswith(("awq", "gptq")):
        return {"gptqmodel": installed("gptqmodel")}
    if to != "F16":
        program = shutil.which("llama-quantize")
        if program is not None:
            seen = Path(program).resolve().stat()
            return {"llama-quantize": [seen.st_size, seen.st_mtime_ns], "gguf": installed("gguf")}
        return {"cyllama": installed("cyllama"), "gguf": installed("gguf")}
    return {"gguf": installed("gguf")}
