"""Where a checkpoint comes from: a hub id, a folder, a GGUF file, a shipped organism."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mechprobe.errors import CheckpointError
from mechprobe.models.located import located

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_HUB_FILE = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(.+\.gguf)\Z")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_PICKLES = ["*.bin", "*.pt"]


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
        text: `org/name`, a local folder, `path/to/file.gguf`, `hf:org/repo/file.gguf` or
            `organism:NAME`.
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
    if match := _HUB_FILE.match(text):
        return Source(
            text, "gguf", _download_file(match[1], match[2], revision, local_only), revision
        )
    if text.startswith("hf:"):
        raise CheckpointError(f"{text}: expected hf:org/repo/file.gguf")
    path = Path(text).expanduser()
    if path.is_file():
        return Source(text, "gguf", _gguf_file(path), None)
    if path.is_dir():
        return _folder(text, path)
    if _HUB_ID.match(text) and not text.lower().endswith(".gguf"):
        patterns = [*_WANTED, *(_PICKLES if allow_pickle else [])]
        patterns += ["*.py"] if trust_remote_code else []
        return Source(
            text, "folder", _download_folder(text, patterns, revision, local_only), revision
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
    repo: str, patterns: list[str], revision: str | None, local_only: bool
) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, revision):
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, local_files_only=local_only
            )
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{repo}: the repository has no config.json; for a GGUF write hf:{repo}/FILE.gguf"
        )
    return folder


def _download_file(repo: str, filename: str, revision: str | None, local_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(repo, revision):
        return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=local_only))


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into one line each."""
    from huggingface_hub import errors as hub

    what = repo if revision is None else f"{repo} at {revision}"
    try:
        yield
    except hub.GatedRepoError as error:
        raise CheckpointError(
            f"{what}: gated; accept its terms on its hub page, then run: hf auth login"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{what}: no such folder here, and no such public repository on the hub "
            "(a private one needs: hf auth login)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise CheckpointError(f"{what}: the hub has no such revision") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{what}: no such folder here, not in the cache, and the hub is out of reach or "
            "switched off (HF_HUB_OFFLINE); name a local folder, or go online once"
        ) from error
    except hub.EntryNotFoundError as error:
        raise CheckpointError(f"{what}: the repository lacks that file") from error
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: download failed: {line}") from error


def is_hub_source(text: str) -> bool:
    """Whether a source is asked of the hub: no path of this machine is called so."""
    if _HUB_FILE.match(text):
        return True
    named = _HUB_ID.match(text) is not None and not text.lower().endswith(".gguf")
    return named and not Path(text).expanduser().exists()


def hub_bytes(text: str, revision: str | None = None) -> int | None:
    """How much `resolve_source` would download; None where the hub does not say (gated, private).

    Args:
        text: A hub id or `hf:org/repo/file.gguf`.
        revision: Branch, tag or commit.

    Raises:
        CheckpointError: The hub is out of reach.
    """
    from fnmatch import fnmatch

    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    match = _HUB_FILE.match(text)
    repo, wanted = (match[1], [match[2]]) if match else (text, _WANTED)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except (hub.HfHubHTTPError, hub.HFValidationError):
        return None
    except Exception as error:
        # what the hub's client raises without a connection depends on its HTTP library
        network = isinstance(error, OSError) or "http" in type(error).__module__
        if not network and not isinstance(error, hub.OfflineModeIsEnabled):
            raise
        raise CheckpointError(f"{repo}: the hub is out of reach") from error
    files = info.siblings or ()
    sizes = [f.size for f in files if any(fnmatch(f.rfilename, pattern) for pattern in wanted)]
    return None if not sizes or None in sizes else sum(size or 0 for size in sizes)
