"""From a file, or the name of a shipped one, to a checked spec; each mistake is one line."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mechprobe.errors import SpecError
from mechprobe.experiments.spec import Spec
from mechprobe.experiments.spec_reading import Reading, read_spec
from mechprobe.textfiles import read_text


@dataclass(frozen=True, slots=True)
class Shipped:
    """A spec that comes with the package."""

    name: str
    about: str
    """Its first comment."""


def shipped_specs(folder: str = "specs") -> tuple[Shipped, ...]:
    """The specs in a folder of the package, sorted by name: what `mechprobe run NAME` knows."""
    found = []
    for entry in files("mechprobe.experiments").joinpath(folder).iterdir():
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found.append(Shipped(entry.name.removesuffix(".yaml"), first.lstrip("# ")))
    return tuple(sorted(found, key=lambda one: one.name))


def spec_text(given: Path | str, folder: str = "specs", kind: str = "spec") -> tuple[str, str]:
    """The text of a spec file, or of a shipped spec by its name, and what messages call it.

    Args:
        given: A path or a name.
        folder: Where the shipped ones lie.
        kind: What they are called.

    Raises:
        SpecError: It cannot be read.
    """
    path, names = Path(given), [one.name for one in shipped_specs(folder)]
    if str(given) in names and not path.is_file():
        text = files("mechprobe.experiments").joinpath(f"{folder}/{given}.yaml")
        return text.read_text(encoding="utf-8"), f"{given}.yaml"
    if not path.exists():
        raise SpecError(
            f"{path}: no such file, and no shipped {kind} is called so; there are "
            f"{', '.join(names)}"
        )
    return read_text(path, SpecError), str(path)


def load_spec(given: Path | str) -> Spec:
    """Read a spec file, or a shipped spec by its name.

    Raises:
        SpecError: It cannot be read or is wrong; see `parse_spec`.
    """
    return reading_of(given).require_right()


def reading_of(given: Path | str) -> Reading[Spec]:
    """Read a spec as `load_spec` does, with what can be used beside its mistakes.

    Raises:
        SpecError: There is no such file, or it cannot be read.
    """
    text, where = spec_text(given)
    return read_spec(text, where, Spec, lambda spec: spec)


def parse_spec(text: str, where: str) -> Spec:
    """Check a spec.

    Args:
        text: YAML.
        where: Its name in messages, a path.

    Raises:
        SpecError: Not YAML, an unknown, missing or repeated field, a wrong type or value, a
            precision that no reader knows, two cells of one name, a baseline that is not a cell
            of the same engine, a chain of baselines that leads back.
    """
    return read_spec(text, where, Spec, lambda spec: spec).require_right()
