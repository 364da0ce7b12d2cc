"""Short questions whose answer everybody knows: a quality that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mechprobe.textfiles import parse_json

SOURCE = "facts"


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, how its answer begins, and four ways to go on, of which the first is right."""

    question: str
    begun: str
    answers: tuple[str, ...]


@cache
def load_facts() -> tuple[Fact, ...]:
    """Return the 100 questions of the package."""
    text = files("mechprobe.behavior").joinpath("data/facts.jsonl").read_text("utf-8")
    rows = [parse_json(line) for line in text.splitlines()]
    return tuple(Fact(row["question"], row["begun"], tuple(row["answers"])) for row in rows)
