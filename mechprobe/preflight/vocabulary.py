"""Whether token ids mean the same to a checkpoint and to the tokenizer that renders its prompts.

Reads the files themselves, so that nothing is loaded; what only a loaded tokenizer shows (the
beginning of a text, tokens added by its configuration) is checked when the checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from mechprobe.errors import CheckpointError, VocabularyError
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_vocabulary import read_vocabulary, require_same_tokens
from mechprobe.models.source import Source
from mechprobe.preflight.header import Header
from mechprobe.textfiles import read_object


def require_same_vocabulary(cell: Header, renderer: Source) -> None:
    """Refuse a checkpoint to which the ids of another tokenizer are other tokens.

    Of two folders the learned vocabularies are compared; tokens added later may be renamed.

    Args:
        cell: The checkpoint.
        renderer: Where the tokenizer that renders the prompts comes from.

    Raises:
        VocabularyError: An id is another token; the message names it.
        CheckpointError: A vocabulary cannot be read.
    """
    source = cell.source
    if source.path == renderer.path:
        return
    if cell.gguf is not None:
        if expected := _tokens(renderer):
            require_same_tokens(read_vocabulary(cell.gguf), expected)
        return
    if renderer.kind == "gguf":
        if expected := _tokens(source):
            require_same_tokens(read_vocabulary(read_gguf(renderer.path)), expected)
        return
    (mine, _), (theirs, _) = (_vocabulary(each.path) for each in (source, renderer))
    for i in sorted(mine.keys() & theirs.keys()):
        if mine[i] != theirs[i]:
            raise VocabularyError(
                f"{source.text}: id {i} is {mine[i]!r} and {theirs[i]!r} to the tokenizer of "
                f"{renderer.text}, which renders the prompts; it belongs to another model"
            )


def _tokens(source: Source) -> Mapping[int, str]:
    """All tokens by id, none where a folder holds no tokenizer.json."""
    if source.kind == "gguf":
        return dict(enumerate(read_vocabulary(read_gguf(source.path)).tokens))
    learned, added = _vocabulary(source.path)
    return {**learned, **added}


def _vocabulary(folder: Path) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """Learned and added tokens of a folder's tokenizer.json, empty where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}, {}
    seen = path.stat()
    return _parsed(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=4)
def _parsed(path: Path, size: int, written: int) -> tuple[Mapping[int, str], Mapping[int, str]]:
    content = read_object(path, CheckpointError)
    try:
        words = content["model"]["vocab"]
        learned: dict[int, str]
        if isinstance(words, dict):
            learned = {int(i): token for token, i in words.items()}
        else:  # Unigram: each token with its score
            learned = {i: str(row[0]) for i, row in enumerate(words)}
        added = {int(one["id"]): str(one["content"]) for one in content.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: holds no vocabulary ({error}); fetch it again") from error
    return {i: token for i, token in learned.items() if i not in added}, added
