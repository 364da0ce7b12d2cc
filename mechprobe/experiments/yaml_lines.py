"""YAML with the line on which each field stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mechprobe.errors import SpecError

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Where in a text its fields stand."""

    where: str
    """The text's name in messages, a path."""
    root: yaml.Node | None

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
        return self._at(self.line(location), location, said)

    def repeated(self) -> SpecError | None:
        """The first field that a mapping has twice, of which YAML keeps the last in silence."""
        if self.root is None:
            return None
        for location, line in _twice(self.root, ()):
            return self._at(line + 1, location, "this field is there twice")
        return None

    def _at(self, line: int | None, location: Location, said: str) -> SpecError:
        at = self.where if line is None else f"{self.where}, line {line}"
        return SpecError(f"{at}: {field_name(location)}: {said}")


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


def _twice(node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _twice(child, (*location, i))
    elif isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            if key.value in seen:
                yield (*location, key.value), key.start_mark.line
            seen.add(key.value)
            yield from _twice(value, (*location, key.value))


def read_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """Read YAML into plain values.

    Args:
        text: YAML.
        where: Its name in messages, a path.

    Raises:
        SpecError: It is not YAML, or a mapping has a field twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{where}{line}: not YAML ({getattr(error, 'problem', error)})") from error
    lines = Lines(where, root)
    if twice := lines.repeated():
        raise twice
    return content, lines
