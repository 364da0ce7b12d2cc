"""A probe's result as one JSON file, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from mechprobe.errors import StoreError
from mechprobe.textfiles import parse_json

T = TypeVar("T")
SCHEMA = 4
"""Of every JSON document of the probes; raised when a field changes its name or meaning."""


class Saved:
    """Base of a result, a frozen dataclass: plain JSON values, one JSON file, and back.

    Arrays that JSON cannot hold are named in `ELSEWHERE` and lie in a file of their own.
    """

    __slots__ = ()

    NAME: ClassVar[str]
    """Of the probe, and of its file."""
    ELSEWHERE: ClassVar[tuple[str, ...]] = ()
    """Fields that `_save_elsewhere` writes and `_load_elsewhere` reads."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = [f.name for f in fields(self) if f.name not in self.ELSEWHERE]  # type: ignore[arg-type]
        kept = {name: _plain(getattr(self, name)) for name in names}
        facts = {"schema": SCHEMA, "probe": self.NAME, "unmet": list(self.unmet)}
        return facts | self._headline() | kept

    def save(self, folder: str | Path) -> Path:
        """Write the result into a folder, its JSON file last; returns the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self._save_elsewhere(target)
        return save_json(self.to_dict(), target, self.NAME)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, from its JSON file or the folder that holds it.

        Raises:
            StoreError: A file is missing or is not one of these.
        """
        file = _file(folder, cls.NAME)
        with _understood(file, cls.NAME):
            found = _fields(cls, _read(file, cls.NAME), cls.ELSEWHERE)
        return cls(**found, **cls._load_elsewhere(file.parent))

    @property
    def unmet(self) -> tuple[str, ...]:
        """What the probe is run for, was asked for, and could not be measured; see `not_measured`.

        Empty in a result that is complete, whatever lesser numbers it lacks.
        """
        return ()

    @property
    def drawable(self) -> bool:
        """Whether there is anything for `plot` to draw."""
        return True

    def _headline(self) -> dict[str, Any]:
        """Numbers that are derived, or that people look for first."""
        return {}

    def _save_elsewhere(self, folder: Path) -> None:
        """Write the fields that JSON does not hold."""

    @classmethod
    def _load_elsewhere(cls, folder: Path) -> dict[str, Any]:
        return {}


def save_json(facts: Mapping[str, Any], folder: str | Path, name: str) -> Path:
    """Write `name`.json into a folder, whole or not at all; returns the folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    part = target / f".{name}.json.part"
    part.write_text(json.dumps({"schema": SCHEMA, **facts}, indent=1) + "\n", encoding="utf-8")
    part.replace(target / f"{name}.json")
    return target


def load_json(cls: type[T], folder: str | Path, name: str) -> T:
    """The dataclass that `save_json` wrote, from its file or the folder that holds it.

    Raises:
        StoreError: The file is missing or is not one of these.
    """
    file = _file(folder, name)
    with _understood(file, name):
        return cls(**_fields(cls, _read(file, name)))


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder)
    return path / f"{name}.json" if path.is_dir() else path


@contextmanager
def _understood(file: Path, name: str) -> Iterator[None]:
    """Whatever is wrong with a saved result, in one line."""
    from pydantic import ValidationError

    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(
            f"{file}: no such file; a result of the {name} probe is saved as {name}.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise StoreError(f"{file}: not a saved result of the {name} probe ({first})") from error


def _read(file: Path, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
    if facts["schema"] != SCHEMA or facts["probe"] != name:
        raise StoreError(f"{file}: not a result of this version's {name} probe; measure again")
    return facts


def _fields(cls: type, facts: Mapping[str, Any], elsewhere: tuple[str, ...] = ()) -> dict[str, Any]:
    from pydantic import TypeAdapter

    hints = get_type_hints(cls, include_extras=True)
    names = [f.name for f in fields(cls) if f.name not in elsewhere]
    return {name: TypeAdapter(hints[name]).validate_python(facts[name]) for name in names}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
