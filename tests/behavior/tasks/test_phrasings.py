"""The parser of free-text choices on phrasings that were labelled by hand."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from mechprobe.behavior.multiple_choice import LETTERS
from mechprobe.behavior.tasks import bbq, choice
from mechprobe.behavior.tasks.item import Item

HERE = Path(__file__).parent
PHRASINGS = yaml.safe_load((HERE / "data" / "phrasings.yaml").read_text("utf-8"))
KINDS = ("right", "wrong letter", "lost", "read though unreadable")


def readings(half):
    """Per phrasing its options' name, its text, its label, and what is read."""
    for name, rows in PHRASINGS[half].items():
        options, unknown = tuple(PHRASINGS["options"][name]), PHRASINGS["unknown"].get(name)
        item = Item("x", "?", options=options, answer=0, unknown=unknown)
        read = choice.read_text if unknown is None else bbq.read_text
        for label, text in rows:
            chosen = read(item, text).more["chosen"]
            yield name, text, label, "none" if chosen is None else LETTERS[chosen]


def kind(label, found):
    if label == found:
        return "right"
    if label == "none":
        return "read though unreadable"
    return "lost" if found == "none" else "wrong letter"


def counts(half):
    found = Counter(kind(label, read) for _, _, label, read in readings(half))
    return [found[name] for name in KINDS]
