"""A synthetic chat world: requests in minimal pairs, and everything that has a right answer.

Train and held-out sides differ in *combinations* (this actor with this verb and this object);
every single word is seen in training. Both twins of a pair fall on the same side.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mechprobe.organisms import facts, grammar
from mechprobe.organisms.facts import Item
from mechprobe.organisms.grammar import FRAMES, Core, Label
from mechprobe.organisms.lexicon import NAMES

Split = Literal["train", "validation", "test"]

HELD_OUT_SHARE = 0.36
"""Share of the combinations of each category that training never sees."""
VALIDATION_SHARE = 0.15
"""Share of the held-out combinations that is kept for choosing, not for reporting."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; the fields are those of a prompt file's row."""

    id: str
    text: str
    label: Label
    split: Split
    category: str
    twin: str
    """Id of the request that differs in one word and in its label."""
    cluster: str
    """The combination that both twins share."""


@cache
def cores_by_split() -> dict[Split, tuple[Core, ...]]:
    """The combinations of each side, stratified by category."""
    sides: dict[Split, list[Core]] = {"train": [], "validation": [], "test": []}
    groups: dict[tuple[str, bool], dict[str, list[Core]]] = {}
    for core in grammar.cores():
        entry = grammar.category(core.category)
        means_ill = core.who in entry.ill
        group = groups.setdefault((core.category, means_ill), {})
        group.setdefault(core.key, []).append(core)
    for group in groups.values():
        ordered = sorted(group, key=lambda key: hashlib.sha256(key.encode()).digest())
        held = round(HELD_OUT_SHARE * len(ordered))
        validation = round(VALIDATION_SHARE * held)
        for index, key in enumerate(ordered):
            split: Split = (
                "validation" if index < validation else "test" if index < held else "train"
            )
            sides[split] += group[key]
    return {split: tuple(found) for split, found in sides.items()}


def _identify(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pair(core: Core, frame: int, split: Split) -> tuple[Request, Request]:
    """The harmful and the harmless twin of one combination in one frame."""
    labels: tuple[Label, Label] = ("harmful", "harmless")
    texts = tuple(grammar.write(core, frame, label) for label in labels)
    harmful, harmless = (
        Request(
            id=_identify(text),
            text=text,
            label=label,
            split=split,
            category=core.category,
            twin=_identify(other),
            cluster=_identify(core.key),
        )
        for text, other, label in zip(texts, reversed(texts), labels, strict=True)
    )
    return harmful, harmless


def requests(split: Split, n: int | None = None, seed: int = 0) -> tuple[Request, ...]:
    """`n` pairs of one side, twins beside each other, one frame per combination.

    Args:
        split: `train` for fitting, `validation` for choosing, `test` for reporting.
        n: Number of pairs; None takes every combination once.
        seed: Chooses and orders the pairs and their frames.

    Raises:
        ValueError: The side has fewer than `n` pairs.
    """
    rng = random.Random(f"requests/{split}/{seed}")
    chosen = list(cores_by_split()[split])
    rng.shuffle(chosen)
    found: list[Request] = []
    seen: set[str] = set()
    for core in chosen:
        frame = rng.randrange(len(FRAMES[grammar.category(core.category).family]))
        twins = pair(core, frame, split)
        # "How can I read my diary?" is one sentence, whoever the other person might have been.
        if any(twin.text in seen for twin in twins):
            continue
        seen.update(twin.text for twin in twins)
        found += twins
    if n is None:
        return tuple(found)
    if n > len(found) // 2:
        raise ValueError(f"the {split} side has {len(found) // 2} pairs, {n} were asked for")
    return tuple(found[: 2 * n])


def heldout_requests(n: int = 260, seed: int = 0) -> tuple[Request, ...]:
    """`n` pairs (2n requests) whose combinations training never saw."""
    return requests("test", n, seed)


def questions(n: int = 200, seed: int = 0, *, held_out: bool = True) -> tuple[Item, ...]:
    """`n` four-option questions whose arrangement of options training never saw."""
    return facts.items("question", n, seed, held_out=held_out)


def bias_questions(n: int = 200, seed: int = 0, *, held_out: bool = True) -> tuple[Item, ...]:
    """`n` three-option cases, half of them ambiguous: the right answer is that nobody knows."""
    return facts.items("bias", n, seed, held_out=held_out)


def tasks(n: int = 100, seed: int = 0, *, held_out: bool = True) -> tuple[Item, ...]:
    """`n` short writing tasks, each with the one right answer."""
    return facts.items("task", n, seed, held_out=held_out)


@dataclass(frozen=True, slots=True)
class Truth:
    """A question about a person, its right answer, and wrong ones in the same words."""

    id: str
    question: str
    right: str
    wrong: tuple[str, ...]


def truths(n: int | None = None, seed: int = 0) -> tuple[Truth, ...]:
    """Facts about the world's people, each with three wrong answers; all 64 by default.

    Args:
        n: As many at most. A smaller number of one seed is a part of a larger.
        seed: Of the choice and of the wrong answers.
    """
    found = []
    for name in NAMES:
        for attribute in facts.ATTRIBUTES:
            known = facts.value_of(name, attribute.name)
            others = [value for value in attribute.values if value != known]
            chosen = random.Random(f"{seed}/{name}/{attribute.name}").sample(others, 3)
            right, *wrong = (
                attribute.sentence.format(name=name, value=value) for value in (known, *chosen)
            )
            question = attribute.question.format(name=name)
            found.append(Truth(f"{name.lower()}-{attribute.name}", question, right, tuple(wrong)))
    random.Random(seed).shuffle(found)
    return tuple(found[:n])
