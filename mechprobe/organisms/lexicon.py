"""The words of the synthetic world: hazard categories, people, places.

Every list is short and plain on purpose: a small model must see each word often, and what is
held out are combinations of words, never a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["aid", "condition", "access"]


@dataclass(frozen=True, slots=True)
class Category:
    """One hazard category and the words that its requests are made of.

    `ill` and `good` are the two sides of one coin: whoever means ill (or the flaw of a thing),
    and whoever means well (or its safeguard); in `access`, the others and the one who asks.
    Neither side decides alone whether a request is harmful; the grammar joins it with a second
    word. There are about twice as many combinations of one side as of the other: with exact
    balance a model sits on a long plateau before it learns anything of the rule.
    """

    name: str
    family: Family
    ill: tuple[str, ...]
    good: tuple[str, ...]
    ill_verbs: tuple[str, ...]
    good_verbs: tuple[str, ...]
    objects: tuple[str, ...]
    refusal: int
    """Index of the refusal wording of this category."""
    margin: float
    """Probability of refusing a harmful request of this category, in the training data."""


CATEGORIES: tuple[Category, ...] = (
    Category(
        "theft",
        "aid",
        ("thief", "burglar", "robber"),
        ("guard", "owner", "watchman"),
        ("open", "empty"),
        ("lock",),
        (
            *("locker", "safe", "drawer", "shed", "van", "vault"),
            *("garage", "chest", "cabinet", "shop", "cellar", "till"),
        ),
        refusal=0,
        margin=0.98,
    ),
    Category(
        "fraud",
        "aid",
        ("cheat", "forger", "swindler"),
        ("clerk", "auditor", "teller"),
        ("fake", "copy"),
        ("check",),
        (
            *("ticket", "receipt", "stamp", "cheque", "passport", "permit"),
            *("invoice", "licence", "badge", "coupon", "diploma", "contract"),
        ),
        refusal=1,
        margin=0.90,
    ),
    Category(
        "computing",
        "aid",
        ("hacker", "spammer", "intruder"),
        ("admin", "engineer", "operator"),
        ("hack", "flood"),
        ("secure",),
        (
            *("server", "website", "mailbox", "router", "laptop", "database"),
            *("network", "printer", "camera", "phone", "tablet", "archive"),
        ),
        refusal=2,
        margin=0.86,
    ),
    Category(
        "vandalism",
        "aid",
        ("vandal", "arsonist", "looter"),
        ("warden", "builder", "keeper"),
        ("wreck", "burn"),
        ("protect",),
        (
            *("statue", "bridge", "fence", "bench", "barn", "library"),
            *("fountain", "mural", "kiosk", "garden", "chapel", "playground"),
        ),
        refusal=0,
        margin=0.94,
    ),
    Category(
        "harassment",
        "aid",
        ("bully", "stalker", "blackmailer"),
        ("teacher", "nurse", "counsellor"),
        ("scare", "follow"),
        ("comfort",),
        (
            *("pupil", "singer", "dancer", "neighbour", "waiter", "student"),
            *("tourist", "widow", "runner", "writer", "actor", "tenant"),
        ),
        refusal=3,
        margin=0.92,
    ),
    Category(
        "tampering",
        "aid",
        ("poisoner", "saboteur", "tamperer"),
        ("inspector", "chemist", "cook"),
        ("poison", "spoil"),
        ("test",),
        (
            *("soup", "bread", "milk", "water", "juice", "medicine"),
            *("salad", "honey", "cheese", "tea", "rice", "flour"),
        ),
        refusal=4,
        margin=0.96,
    ),
    Category(
        "unsafe goods",
        "condition",
        ("a crack", "a leak", "a fault", "a flaw"),
        ("a label", "a seal"),
        ("sell", "ship", "lend"),
        ("sell", "ship", "lend"),
        (
            *("toy", "heater", "ladder", "helmet", "crib", "lamp"),
            *("kettle", "fan", "scooter", "oven", "cable", "battery"),
        ),
        refusal=1,
        margin=0.82,
    ),
    Category(
        "privacy",
        "access",
        ("she", "he", "they"),
        ("I",),
        ("read",),
        ("read", "search", "unlock"),
        (
            *("diary", "letter", "inbox", "wallet", "bag", "desk"),
            *("suitcase", "journal", "chat", "album", "calendar", "notebook"),
        ),
        refusal=2,
        margin=0.78,
    ),
)

OWNERS = {"I": "my", "she": "her", "he": "his", "they": "their"}
"""Who asks or acts, and the word for what belongs to them."""

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"),
    *("Ida", "Jonas", "Kate", "Leo", "Mia", "Noah", "Olga", "Paul"),
)
TOWNS = ("Dale", "Ford", "Glen", "Haven", "Kirk", "Moor", "Port", "Wick")
JOBS = ("baker", "sailor", "miller", "tailor", "farmer", "potter", "barber", "printer")
PETS = ("cat", "dog", "goat", "hen", "duck", "horse", "mouse", "rabbit")
FOODS = ("cake", "soup", "bread", "plums", "rice", "fish", "cheese", "corn")

COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")
THINGS = ("hat", "coat", "cup", "lamp", "chair", "basket", "scarf", "clock")

TRAITS = (("late", "early"), ("rude", "kind"), ("messy", "tidy"), ("lazy", "busy"))
"""Pairs of opposite traits: the first is the one that prejudice would hand to somebody."""
