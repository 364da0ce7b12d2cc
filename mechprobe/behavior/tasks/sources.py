"""Where a task's rows come from: a file here, or one file of a data set on the hub.

A data set on the hub is named with the commit it is read at,

    hf-dataset:ORG/NAME@COMMIT/path/in/the/repository.jsonl

because a result must say which version of the questions was asked. Only that file is downloaded,
into the hub's own cache; no code of the repository is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechprobe.behavior.records import Record, json_array, json_lines, objects, read_text
from mechprobe.errors import PromptFileError
from mechprobe.textfiles import MalformedError, parse_csv, parse_yaml

_HUB = re.compile(r"hf-dataset:([\w.-]+(?:/[\w.-]+)?)@([0-9a-f]{40})/(.+)")
_PREFIX = "hf-dataset:"
_ENDINGS = ".csv, .tsv, .json, .jsonl, .ndjson, .parquet, .yaml or .yml"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file."""

    name: str
    """The source as it was named."""
    records: tuple[Record, ...]
    head: dict[str, Any] = field(default_factory=dict)
    """What a YAML file says beside its rows."""

    @property
    def columns(self) -> frozenset[str]:
        """Names of the fields of the first row."""
        return frozenset(self.records[0].fields)


def is_hub(source: str | Path) -> bool:
    """Whether this names a data set on the hub."""
    return str(source).startswith(_PREFIX)


def local_file(source: str | Path) -> Path:
    """The file behind a source, downloaded where it is on the hub and not in the cache.

    Raises:
        PromptFileError: No revision is named, or the file cannot be had.
    """
    if not is_hub(source):
        return Path(source)
    match = _HUB.fullmatch(str(source))
    if match is None:
        raise PromptFileError(
            f"{source}: needs hf-dataset:ORG/NAME@COMMIT/FILE with a full 40-digit commit, so that "
            "the same rows are read next time"
        )
    repo, revision, name = match.groups()
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, revision=revision, repo_type="dataset"))
    except hub.GatedRepoError as error:
        raise PromptFileError(
            f"{source}: gated; accept its terms on its hub page, then run: hf auth login"
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise PromptFileError(
            f"{source}: not in the cache, and the hub is out of reach or switched off "
            "(HF_HUB_OFFLINE); name a local file, or go online once"
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise PromptFileError(f"{source}: the hub has no such data set or commit") from error
    except hub.EntryNotFoundError as error:
        raise PromptFileError(f"{source}: the data set has no such file") from error
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise PromptFileError(f"{source}: download failed: {line}") from error


def read_table(source: str | Path, *, header: tuple[str, ...] = ()) -> Table:
    """The rows of a file, by its ending.

    Args:
        source: A path, or a file of a data set on the hub.
        header: Names of the columns of a CSV that has none of its own.

    Raises:
        PromptFileError: The file is missing, empty, malformed, or of another kind; the message
            names the line where there is one.
    """
    path, name = local_file(source), str(source)
    ending = path.suffix.lower()
    head: dict[str, Any] = {}
    if ending in (".csv", ".tsv"):
        rows = _csv(read_text(path, name), name, "\t" if ending == ".tsv" else ",", header)
    elif ending in (".jsonl", ".ndjson"):
        rows = json_lines(read_text(path, name), name)
    elif ending == ".json":
        rows = json_array(read_text(path, name), name)
    elif ending in (".yaml", ".yml"):
        head, rows = _yaml(read_text(path, name), name)
    elif ending == ".parquet":
        rows = _parquet(path, name)
    elif not path.exists():
        raise PromptFileError(f"{name}: no such file")
    else:
        raise PromptFileError(f"{name}: not a table; give a file that ends in {_ENDINGS}")
    records = tuple(rows)
    if not records:
        raise PromptFileError(f"{name}: no rows; at least one is needed")
    return Table(name, records, head)


def text_field(record: Record, name: str) -> str:
    """A field that must be a text.

    Raises:
        PromptFileError: It is missing, empty or no text.
    """
    value = record.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise PromptFileError(f"{record.where}: {name!r} needs a text, not {value!r}")
    return value


def optional(record: Record, name: str) -> str | None:
    """A field that may be missing or empty, as text."""
    value = record.fields.get(name)
    return None if value in (None, "") else str(value)


def _csv(text: str, name: str, delimiter: str, header: tuple[str, ...]) -> Iterator[Record]:
    try:
        table = parse_csv(text, delimiter=delimiter, header=header)
    except MalformedError as error:
        raise PromptFileError(error.at(name)) from error
    for line, row in zip(table.lines, table.rows, strict=True):
        yield Record(f"{name}, line {line}", dict(row))


def _yaml(text: str, name: str) -> tuple[dict[str, Any], Iterator[Record]]:
    try:
        content = parse_yaml(text)
    except MalformedError as error:
        raise PromptFileError(error.at(name)) from error
    if not isinstance(content, dict) or not isinstance(content.get("samples"), list):
        raise PromptFileError(f"{name}: needs a list named 'samples'")
    return content, objects(content.pop("samples"), name)


def _parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        line = (str(error).splitlines() or ["no message"])[0]
        raise PromptFileError(f"{name}: cannot be read as Parquet: {line}") from error
    return objects(rows, name)
