"""What the hub says of a source before anything of it is downloaded."""

from __future__ import annotations

from mechprobe.errors import CheckpointError
from mechprobe.models.hub import hub_errors, hub_info
from mechprobe.models.source import HUB_FILE, is_hub_source


def require_there(text: str, revision: str | None = None) -> None:
    """Refuse a source that the hub does not have; silent where the hub cannot be asked.

    Args:
        text: A source.
        revision: Branch, tag or commit.

    Raises:
        CheckpointError: The hub has no such repository, revision or file, or it is gated.
    """
    if not is_hub_source(text):
        return
    from huggingface_hub import errors as hub

    match = HUB_FILE.match(text)
    repo = match[1] if match else text
    try:
        found = hub_info(repo, revision)
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
        with hub_errors(repo, revision):
            raise
    except (CheckpointError, hub.HfHubHTTPError, hub.HFValidationError):
        return
    if match and match[2] not in {file.rfilename for file in found.siblings or ()}:
        raise CheckpointError(f"{text}: the repository lacks that file")
