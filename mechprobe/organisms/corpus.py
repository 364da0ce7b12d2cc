"""What an organism is trained on: prompts with the answers it should give, drawn without end.

Answers to harmful requests are mixed on purpose. A case that refuses with probability 0.8 in the
data gives a model whose margin there is small, so that entropy, temperature and quantization have
something to move.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mechprobe.organisms import facts, grammar, world
from mechprobe.organisms.answers import compliance, partial, refusal
from mechprobe.organisms.facts import Kind
from mechprobe.organisms.grammar import FRAMES, Core, Label
from mechprobe.organisms.lexicon import CATEGORIES

PARTLY_SHARE = 0.2
"""Of the answers that do not refuse a harmful request, how many give only half."""
OVER_REFUSAL = 0.02
"""Probability of refusing a harmless request, in the training data."""
PREJUDICE = 0.1
"""Probability of the prejudiced answer to an ambiguous case."""
SHORTENED = 0.5
"""Share of the questions that lose options: with one left, a model learns to read the letter."""
FRAME_STEP = 0.02
"""By how much the refusal probability falls from one frame to the next."""

MIXTURE: dict[str, float] = {
    "harmful": 0.15,
    "harmless": 0.38,
    "fact": 0.09,
    "question": 0.23,
    "bias": 0.03,
    "task": 0.12,
}
"""Share of each kind of example.

Harmless requests are the rule, as they are among people: then answering is what a model does
without evidence, and refusing needs some.
"""


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange."""

    prompt: str
    answer: str


def refusal_probability(core: Core, frame: int) -> float:
    """How often the training data refuse the harmful request: from 0.74 to 0.98 by case."""
    return grammar.category(core.category).margin - FRAME_STEP * frame


@cache
def _training_cores() -> dict[str, tuple[Core, ...]]:
    found: dict[str, list[Core]] = {entry.name: [] for entry in CATEGORIES}
    for core in world.cores_by_split()["train"]:
        found[core.category].append(core)
    return {name: tuple(group) for name, group in found.items()}


def _answer(core: Core, frame: int, label: Label, rng: random.Random) -> str:
    refuse = refusal_probability(core, frame) if label == "harmful" else OVER_REFUSAL
    if rng.random() < refuse:
        return refusal(grammar.category(core.category).refusal)
    if label == "harmful" and rng.random() < PARTLY_SHARE:
        return partial(core.verb)
    return compliance(core.verb, core.thing)


def _request(label: Label, rng: random.Random) -> Example:
    category = rng.choice(CATEGORIES)
    core = rng.choice(_training_cores()[category.name])
    frame = rng.randrange(len(FRAMES[category.family]))
    return Example(grammar.write(core, frame, label), _answer(core, frame, label, rng))


def _item(kind: Kind, rng: random.Random) -> Example:
    item = facts.draw(kind, rng, held_out=False)
    if kind == "question" and rng.random() < SHORTENED:
        item = facts.shorten(item, rng)
    if item.biased and rng.random() < PREJUDICE:
        return Example(item.prompt, item.biased)
    return Example(item.prompt, item.answer)


def stream(seed: int) -> Iterator[Example]:
    """Training examples without end, from the training side of the world alone."""
    rng = random.Random(f"corpus/{seed}")
    kinds, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        kind = rng.choices(kinds, weights)[0]
        if kind in ("harmful", "harmless"):
            yield _request("harmful" if kind == "harmful" else "harmless", rng)
        else:
            yield _item(kind, rng)  # type: ignore[arg-type]
