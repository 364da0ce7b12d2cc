"""A probe's result as one JSON file, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from mechprobe.errors import StoreError

T = TypeVar("T")
SCHEMA = 1


def save_json(facts: dict[str, Any], folder: str | Path, name: str) -> Path:
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
    from pydantic import TypeAdapter, ValidationError

    path = Path(folder)
    file = path / f"{name}.json" if path.is_dir() else path
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["schema"] != SCHEMA or facts["probe"] != name:
            raise StoreError(f"{file}: not a result of this version's {name} probe; measure again")
        fields: Any = cls
        kept = {key: facts[key] for key in fields.__dataclass_fields__}
        return TypeAdapter(cls).validate_python(kept)
    except FileNotFoundError as error:
        raise StoreError(
            f"{file}: no such file; a result of the {name} probe is saved as {name}.json"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise StoreError(f"{file}: not a saved result of the {name} probe ({first})") from error
