"""YAML with the line on which each field stands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    kept: Mapping[Location, Sequence[int]] = field(default_factory=dict, compare=False)
    """Of lists that lack items, which ones of the text are there."""

    def without(self, content: Any, left_out: Collection[Location]) -> tuple[Any, Lines]:
        """Return what the text says without some of its fields and items, and their lines."""
        kept: dict[Location, Sequence[int]] = {}
        return _without(content, (), left_out, kept), replace(self, kept=kept)

    def original(self, location: Location) -> Location:
        """Return where in the text a field is that lies here after items were left out."""
        at: Location = ()
        for part in location:
            kept = self.kept.get(at)
            at = (*at, part if kept is None or isinstance(part, str) else kept[part])
        return at

    def lacks(self, location: Location) -> bool:
        """Return whether items of a list were left out."""
        return self.original(location) in self.kept

    def line(self, location: Location) -> int | None:
        """Number of the line of a field, or of what should hold it, from 1."""
        node, line = self.root, None if self.root is None else self.root.start_mark.line
        for part in self.original(location):
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
        return self._at(self.line(location), self.original(location))

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


def _without(
    value: Any,
    at: Location,
    left_out: Collection[Location],
    kept: dict[Location, Sequence[int]],
) -> Any:
    """A copy of a value without what is left out in it; the value where that is nothing."""
    if not any(one[: len(at)] == at for one in left_out):
        return value
    if isinstance(value, dict):
        return {
            name: _without(one, (*at, name), left_out, kept)
            for name, one in value.items()
            if (*at, name) not in left_out
        }
    if isinstance(value, list):
        there = [n for n in range(len(value)) if (*at, n) not in left_out]
        if len(there) < len(value):
            kept[at] = there
        return [_without(value[n], (*at, n), left_out, kept) for n in there]
    return value


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
