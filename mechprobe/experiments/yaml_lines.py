"""YAML with the line on which each field stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from mechprobe.errors import SpecError

Location = tuple[int | str, ...]
_QUOTED = 40
"""Characters of a text that a message quotes at most."""
_BITS = 10_000
"""Of a whole number at most: Python writes no more than 4,300 digits."""


class _Loader(yaml.SafeLoader):
    """Plain values; what YAML's own constructors trip over is an error with its place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, bytes) or (isinstance(found, int) and found.bit_length() > _BITS):
                raise ValueError("no text and no decimal number holds it")
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            why = f": {error}" if kind == "timestamp" and isinstance(error, ValueError) else ""
            said = f"{_quoted(node.value)}: reads as {kind} and is none{why}"
            raise _NoValueError(None, None, said, node.start_mark) from error
        return found


class _NoValueError(ConstructorError):
    """A plain value that looks like a date or a number and is none."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Where in a text its fields stand."""

    where: str = field(default="", compare=False)
    """The text's name in messages, a path; none where there is no text."""
    root: yaml.Node | None = field(default=None, compare=False)

    def line(self, location: Location) -> int | None:
        """Number of the line of a field, or of what should hold it, from 1."""
        node, line = self.root, None if self.root is None else self.root.start_mark.line
        for part in location:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return None if line is None else line + 1

    def error(self, location: Location, said: str) -> SpecError:
        """A mistake in one line that names file, line and field."""
        return SpecError(f"{self.place(location)}: {said}")

    def place(self, location: Location) -> str:
        """File, line and name of a field, as far as they are known."""
        return self._at(self.line(location), location)

    def wrong_key(self) -> SpecError | None:
        """The first field without a name, or that a mapping has twice: YAML keeps the last."""
        if self.root is None:
            return None
        for location, node, said in _wrong_keys(self.root, (), {}):
            return SpecError(f"{self._at(node.start_mark.line + 1, location)}: {said}")
        return None

    def _at(self, line: int | None, location: Location) -> str:
        at = self.where if line is None else f"{self.where}, line {line}"
        return f"{at}: {field_name(location)}" if at else field_name(location)


def field_name(location: Location) -> str:
    """`models[0].cells[2].precision`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "the spec"


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        child = node.value[part]
        return child.start_mark.line, child
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line, value
    return None


def _wrong_keys(
    node: yaml.Node, location: Location, seen: dict[int, bool]
) -> Iterator[tuple[Location, yaml.Node, str]]:
    """Each key that is there twice or is no text.

    Args:
        node: What to read; once, however many aliases lead to it.
        location: Where it is.
        seen: By node that was read, whether it is one that this lies in.

    Raises:
        RecursionError: Something lies in itself.
    """
    if seen.get(id(node)):
        raise RecursionError
    if id(node) in seen:
        return
    seen[id(node)] = True
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _wrong_keys(child, (*location, i), seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[Any] = set()
        for key, value in node.value:
            here = (*location, str(key.value))
            if isinstance(key, yaml.ScalarNode):  # of others YAML itself says that they cannot be
                if key.value in names:
                    yield here, key, "this field is there twice"
                elif not key.tag.endswith((":str", ":merge")):
                    yield here, key, "a field's name is text; put it in quotes if this is one"
                names.add(key.value)
            yield from _wrong_keys(value, here, seen)
    seen[id(node)] = False


def read_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """Read YAML into plain values.

    Args:
        text: YAML.
        where: Its name in messages, a path.

    Raises:
        SpecError: It is not YAML, a value looks like a date and is none, a field has no name or is
            there twice, or lists lie in each other too deep, or in themselves.
    """
    try:
        root = _composed(text, where)
        lines = Lines(where, root)
        wrong = lines.wrong_key()
        content = None if wrong else yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(_not_yaml(error, text, where)) from error
    except RecursionError as error:
        said = "fields lie in each other too deep, or an alias (*name) lies in what it names"
        raise SpecError(f"{where}: {said}") from error
    if wrong:
        raise wrong
    return content, lines


def _composed(text: str, where: str) -> yaml.Node | None:
    """The nodes of a text; none of an empty one.

    Raises:
        SpecError: Something stands for a character or a number that there is not.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except (ArithmeticError, ValueError) as error:
        said = "not YAML (an escaped character or a number that is out of range)"
        raise SpecError(f"{where}, line {loader.line + 1}: {said}") from error
    finally:
        loader.dispose()


def _quoted(text: object, most: int = _QUOTED) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _not_yaml(error: yaml.YAMLError, text: str, where: str) -> str:
    """What is wrong with a text, and in which line, in one line."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        said = f"the character U+{error.character:04X} cannot be in it"
        return f"{where}, line {line}: not YAML ({said})"
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", str(error))
    at = f", line {mark.line + 1}" if mark else ""
    if isinstance(error, _NoValueError):
        return f"{where}{at}: {said}; put it in quotes if it is text"
    return f"{where}{at}: not YAML ({_quoted(said, 2 * _QUOTED)})"
