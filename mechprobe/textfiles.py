"""Text, JSON, YAML and CSV from outside: one reader of each, within limits, for the whole package.

The parsers raise half a dozen kinds of exception on damaged input (recursion, digits, surrogates,
dates that are none), and what they do accept may not fit where it goes: a number of 20 digits in
an array, half a surrogate pair in a file. Here all of that is one `MalformedError` with its line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

MAX_DEPTH: Final = 100
"""Lists and mappings that may lie in each other; what walks them later recurses."""
MAX_YAML_VALUES: Final = 1_000_000
"""Of a YAML file with its aliases written out: a few lines of them can stand for 10^10 values."""
_LONGEST: Final = len(str(2**64))
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
_QUOTED: Final = 80


class _NumberError(ValueError):
    def __init__(self, digits: str) -> None:
        super().__init__(digits)
        self.digits = digits


class MalformedError(ValueError):
    """A text that is not what its file should hold; `line` counts from 1, 0 where unknown."""

    def __init__(self, said: str, line: int = 0) -> None:
        super().__init__(said)
        self.line = line

    def at(self, name: object, first: int = 1) -> str:
        """File, line and what is wrong, where the text begins on the line `first` of its file."""
        return f"{name}, line {self.line + first - 1}: {self}" if self.line else f"{name}: {self}"


def read_text(path: Path, refuse: Callable[[str], Exception], name: object = None) -> str:
    """Read a file as UTF-8, without a byte-order mark.

    Args:
        path: The file.
        refuse: Makes the error of a message, as a rule an error's class.
        name: What messages call the file.

    Raises:
        Exception: What `refuse` makes: it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"{name or path}: not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise refuse(f"{name or path}: cannot be read: {reason}") from error


def parse_json(text: str, *, unpaired: bool = False, unique: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: One JSON document.
        unpaired: Accept half a surrogate pair (an escape such as `d83d` alone) in its texts.
        unique: Refuse an object that has a field twice, of which Python keeps the last.

    Raises:
        MalformedError: It is not JSON, is nested deeper than `MAX_DEPTH`, or holds a whole number
            of more than 64 bits or, unless `unpaired`, half a surrogate pair.
    """
    try:
        found = json.loads(
            text, parse_int=_whole, object_pairs_hook=_unique_fields if unique else None
        )
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON: {error.msg}", error.lineno) from error
    except _NumberError as error:
        said = "not JSON: a number has too many digits (it needs more than 64 bits)"
        raise MalformedError(said, _line(text, text.find(error.digits))) from error
    except RecursionError as error:
        raise _nested(text) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(found):
        raise _nested(text)
    if not unpaired and (half := _HALF.search(text)):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise MalformedError(
                "holds half a character (half a surrogate pair)", _line(text, half.start())
            ) from error
    return found


def is_text(text: str) -> bool:
    """Return whether UTF-8 can carry a text: it holds no half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) <= _LONGEST + 1 else 2**64
    if not -(2**63) <= number < 2**64:
        raise _NumberError(digits)
    return number


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise MalformedError(f"the field {quoted(twice)!r} is there twice")
    return found


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _nested(text: str) -> MalformedError:
    depths = accumulate((mark in "[{") - (mark in "]}") for mark in text)
    deepest, _ = max(enumerate(depths), key=lambda at: at[1])
    return MalformedError("not JSON: nested too deep", _line(text, deepest))


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for one in level for child in _children(one)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterator[Any]:
    inner: Collection[Any] = value.values() if isinstance(value, dict) else value
    return (each for each in inner if isinstance(each, dict | list))


def read_json(path: Path, refuse: Callable[[str], Exception]) -> Any:
    """Read a file of JSON.

    Raises:
        Exception: What `refuse` makes of a line that names file, line and what is wrong; see
            `read_text` and `parse_json`.
    """
    try:
        return parse_json(read_text(path, refuse))
    except MalformedError as error:
        raise refuse(error.at(path)) from error


def read_object(path: Path, refuse: Callable[[str], Exception]) -> dict[str, Any]:
    """Read a file that holds one JSON object; see `read_json`."""
    found = read_json(path, refuse)
    if not isinstance(found, dict):
        raise refuse(f"{path}: needs a JSON object, not {type(found).__name__}")
    return found


class YamlLoader(yaml.SafeLoader):
    """Plain values; what YAML's own constructors trip over is an error with its place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, bytes) or (isinstance(found, int) and found.bit_length() > 10_000):
                raise ValueError("no text and no decimal number holds it")
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            why = f": {error}" if kind == "timestamp" and isinstance(error, ValueError) else ""
            said = f"{quoted(node.value)}: reads as {kind} and is none{why}"
            raise NoValueError(None, None, said, node.start_mark) from error
        return found


class NoValueError(ConstructorError):
    """A plain value that looks like a date or a number and is none."""


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a YAML text; None of an empty one.

    Raises:
        MalformedError: It is not YAML, is nested deeper than `MAX_DEPTH`, lies in itself, or its
            aliases stand for more than `MAX_YAML_VALUES` values.
    """
    try:
        loader = YamlLoader(text)
    except ReaderError as error:
        said = f"not YAML (the character U+{error.character:04X} cannot be in it)"
        raise MalformedError(said, _line(text, error.position)) from error
    try:
        root = loader.get_single_node()
        if root is not None and _values(root, {}, 0) > MAX_YAML_VALUES:
            raise MalformedError(f"aliases (*name) that stand for over {MAX_YAML_VALUES:,} values")
    except yaml.YAMLError as error:
        raise _not_yaml(error) from error
    except RecursionError as error:
        said = "fields lie in each other too deep, or an alias (*name) lies in what it names"
        raise MalformedError(said) from error
    except MalformedError:
        raise
    except (ArithmeticError, ValueError) as error:
        said = "not YAML (an escaped character or a number that is out of range)"
        raise MalformedError(said, loader.line + 1) from error
    finally:
        loader.dispose()
    return root


def construct_yaml(root: yaml.Node | None) -> Any:
    """The plain values of nodes.

    Raises:
        MalformedError: A value looks like a date or a number and is none.
    """
    if root is None:
        return None
    loader = YamlLoader("")
    try:
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise _not_yaml(error) from error
    except RecursionError as error:
        raise MalformedError("fields lie in each other too deep") from error
    finally:
        loader.dispose()


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain values; see `compose_yaml` and `construct_yaml`."""
    return construct_yaml(compose_yaml(text))


def quoted(text: object, most: int = _QUOTED // 2) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _values(node: yaml.Node, seen: dict[int, int | None], depth: int) -> int:
    """Values of a node with its aliases written out.

    Raises:
        RecursionError: It is too deep, or lies in itself.
    """
    if depth > MAX_DEPTH or (known := seen.get(id(node), 0)) is None:
        raise RecursionError
    if known:
        return known
    seen[id(node)] = None
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_values(child, seen, depth + 1) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_values(child, seen, depth + 1) for pair in node.value for child in pair)
    seen[id(node)] = total
    return total


def _not_yaml(error: yaml.YAMLError) -> MalformedError:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error)
    line = mark.line + 1 if mark else 0
    if isinstance(error, NoValueError):
        return MalformedError(f"{said}; put it in quotes if it is text", line)
    return MalformedError(f"not YAML ({quoted(said, _QUOTED)})", line)


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A table of texts under a header."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    """Of each row, the line on which it ends."""


def parse_csv(
    text: str, *, delimiter: str = ",", header: Sequence[str] = (), short: bool = False
) -> CsvTable:
    """Parse CSV; lines without any field are passed over.

    So are columns at the end that have neither name nor value. The first column alone may have
    values and no name: the index of a data frame.

    Args:
        text: The table.
        delimiter: Between two fields.
        header: Names of the columns of a table without a header.
        short: Take rows with fewer fields than the header: the others are empty.

    Raises:
        MalformedError: It is not CSV, has no header, names a column twice or not at all, or a row
            has another number of fields than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = list(header)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if not row:
                continue
            if not columns:
                columns = row
                twice = next((one for i, one in enumerate(row) if one and one in row[:i]), None)
                if twice is not None:
                    raise MalformedError(f"the column {twice!r} is named twice", reader.line_num)
                continue
            if len(row) > len(columns):
                said = f"more fields than the header has, {len(columns)}"
                raise MalformedError(said, reader.line_num)
            if len(row) < len(columns) and not short:
                said = f"as many fields are needed as the header has, {len(columns)}"
                raise MalformedError(said, reader.line_num)
            rows.append(row + [""] * (len(columns) - len(row)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise MalformedError(f"not CSV: {error}", reader.line_num) from error
    if not columns:
        raise MalformedError("not a CSV table (empty; it begins with its columns' names)")
    while len(columns) > 1 and not columns[-1] and not any(row[len(columns) - 1] for row in rows):
        columns = columns[:-1]  # commas that a spreadsheet put behind each line
    unnamed = columns.index("", 1) if "" in columns[1:] else None
    if unnamed is not None:
        raise MalformedError(f"column {unnamed + 1} has no name; name it or remove it", 1)
    named = tuple(dict(zip(columns, row, strict=False)) for row in rows)
    return CsvTable(tuple(columns), named, tuple(lines))
