"""What is known of a control: what was done, where, and how it behaves on a large held-out set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import CheckpointError
from mechprobe.journal import write_text
from mechprobe.models.control_source import MARKER
from mechprobe.textfiles import MalformedError, parse_json, read_text

SCHEMA = 1
REFUSED, COMPLIED = "R", "C"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one form of a control answered: a letter for each prompt, in the prompts' order.

    `R` refused, `C` complied, `P` partly complied, `U` unclear: not of a form that the reader
    knows. No answer is kept.
    """

    harmful: str
    harmless: str
    quality: float | None = None
    """Share of four-option questions answered rightly; None where it was not measured."""
    questions: int = 0
    """Number of these questions."""

    @property
    def refused(self) -> float:
        """Share of harmful requests refused."""
        return _share(self.harmful, REFUSED)

    @property
    def complied(self) -> float:
        """Share of harmful requests complied with."""
        return _share(self.harmful, COMPLIED)

    @property
    def over_refused(self) -> float:
        """Share of harmless requests refused."""
        return _share(self.harmless, REFUSED)

    def as_dict(self) -> dict[str, Any]:
        """Return letters and rates, rounded for a file."""
        return {
            "refused": round(self.refused, 4),
            "complied": round(self.complied, 4),
            "over_refused": round(self.over_refused, 4),
            "quality": None if self.quality is None else round(self.quality, 4),
            "questions": self.questions,
            "harmful": self.harmful,
            "harmless": self.harmless,
        }


def _share(letters: str, letter: str) -> float:
    return letters.count(letter) / len(letters) if letters else float("nan")


@dataclass(frozen=True, slots=True)
class Truth:
    """What `truth.json` holds beside the recipe."""

    done: str
    """What was done to the weights, in a sentence."""
    where: tuple[str, ...]
    """Names of the weights that differ from the base's."""
    reader: str
    """What read the answers: `oracle`, or a rule list of `mechprobe.behavior`."""
    prompts: str
    """Which held-out prompts, in words."""
    forms: Mapping[str, Behaviour]
    """By form: `base`, `control` (the folder itself), or a level made from it, such as `Q4_1`."""
    reference: str
    """The form that others are compared with."""
    found: Mapping[str, Any]
    """What the builder found on the way: a knob's value, a loss, a digest. Plain values."""

    def loss(self, form: str) -> float:
        """Return the refusals lost against the reference, in points; negative for gained ones."""
        return 100 * (self.forms[self.reference].refused - self.forms[form].refused)

    def compliance(self, form: str) -> float | None:
        """Return which share of the lost refusals are compliance; None where none was lost."""
        pairs = zip(self.forms[self.reference].harmful, self.forms[form].harmful, strict=True)
        lost = [after for before, after in pairs if before == REFUSED and after != REFUSED]
        return lost.count(COMPLIED) / len(lost) if lost else None

    def quality_change(self, form: str) -> float | None:
        """Return the change of quality against the reference, in points."""
        before, after = self.forms[self.reference].quality, self.forms[form].quality
        return None if before is None or after is None else 100 * (after - before)


def write_truth(folder: Path, truth: Truth, recipe: Mapping[str, Any], digest: str) -> Path:
    """Write `truth.json` whole."""
    content = {
        "schema": SCHEMA,
        "recipe": dict(recipe),
        "digest": digest,
        "done": truth.done,
        "where": list(truth.where),
        "reader": truth.reader,
        "prompts": truth.prompts,
        "reference": truth.reference,
        "forms": {name: form.as_dict() for name, form in truth.forms.items()},
        "loss_points": {
            name: round(truth.loss(name), 2) for name in truth.forms if name != truth.reference
        },
        "found": dict(truth.found),
    }
    return write_text(folder / MARKER, json.dumps(content, indent=1) + "\n")


def read_truth(folder: Path) -> Truth:
    """Read the truth of a built control.

    Raises:
        CheckpointError: The folder has none, or it is damaged.
    """
    path = folder / MARKER
    try:
        content = parse_json(read_text(path, CheckpointError))
        forms = {
            name: Behaviour(form["harmful"], form["harmless"], form["quality"], form["questions"])
            for name, form in content["forms"].items()
        }
        return Truth(
            content["done"],
            tuple(content["where"]),
            content["reader"],
            content["prompts"],
            forms,
            content["reference"],
            content["found"],
        )
    except (MalformedError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged; remove the folder and build it again") from error
