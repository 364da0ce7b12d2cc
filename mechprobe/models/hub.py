"""Asking the hub, and its errors in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def hub_info(repo: str, revision: str | None) -> ModelInfo:
    """Ask the hub for a repository and its files.

    Raises:
        CheckpointError: The hub is out of reach.
        HfHubHTTPError: The hub refuses; HFValidationError: nothing can be called so.
    """
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    try:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except (hub.HfHubHTTPError, hub.HFValidationError):
        raise
    except Exception as error:
        # what the hub's client raises without a connection depends on its HTTP library
        network = isinstance(error, OSError) or "http" in type(error).__module__
        if not network and not isinstance(error, hub.OfflineModeIsEnabled):
            raise
        raise CheckpointError(f"{repo}: the hub is out of reach") from error


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
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
            f"{what}: no such file or folder here, and no such public repository on the hub "
            "(a private one needs: hf auth login)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise CheckpointError(f"{what}: the hub has no such revision") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{what}: no such file or folder here, not in the cache, and the hub is out of reach "
            "or switched off (HF_HUB_OFFLINE); name a local folder, or go online once"
        ) from error
    except hub.EntryNotFoundError as error:
        raise CheckpointError(f"{what}: the repository lacks that file") from error
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: download failed: {line}") from error
