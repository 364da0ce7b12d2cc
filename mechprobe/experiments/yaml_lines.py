"""YAML with the line on which each field stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from mechprobe.errors import SpecError
from mechprobe.textfiles import MalformedError, compose_yaml, construct_yaml

Location = tuple[int | str, ...]


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
        for location, node, said in _wrong_keys(self.root, (), set()):
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
    node: yaml.Node, location: Location, seen: set[int]
) -> Iterator[tuple[Location, yaml.Node, str]]:
    """Each key that is there twice or is no text.

    Args:
        node: What to read; once, however many aliases lead to it.
        location: Where it is.
        seen: Nodes that were read.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
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
        root = compose_yaml(text)
        lines = Lines(where, root)
        if wrong := lines.wrong_key():
            raise wrong
        return construct_yaml(root), lines
    except MalformedError as error:
        raise SpecError(error.at(where)) from error
