"""Which judge a name stands for, what a second one reads, and what several say together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mechprobe.behavior.judges.base import LABELS, Exchange, Judge, Judgement, digest
from mechprobe.behavior.judges.local import oracle_judge, rules_judge
from mechprobe.behavior.judges.remote import Calls, RemoteJudge
from mechprobe.behavior.judges.voting import MISSING, vote
from mechprobe.errors import SpecError
from mechprobe.generation.endpoint import Endpoint

MAJORITY = "majority"


def open_judge(text: str, calls: Calls | None = None, *, asks: bool = True) -> Judge:
    """The judge that a name stands for; closed after use.

    Args:
        text: `rules`, `rules:INSTRUMENT`, `oracle`, `openai:MODEL@URL` or `hf:CLASSIFIER`.
        calls: How a server is called.
        asks: False for counting alone; a server's judge then needs no key.

    Raises:
        SpecError: The name stands for none, or is incomplete.
        MissingExtraError: A server is to judge and the extra `judges` is not installed.
    """
    if text == "rules":
        return rules_judge()
    if text.startswith("rules:"):
        return rules_judge(text.removeprefix("rules:"))
    if text == "oracle":
        return oracle_judge()
    if text.startswith("openai:"):
        return RemoteJudge(Endpoint.parse(text), calls, asks=asks)
    if text.startswith("hf:"):
        from mechprobe.behavior.judges.classifier import ClassifierJudge

        return ClassifierJudge(text)
    raise SpecError(
        f"judge {text!r}: use rules, oracle, openai:MODEL@URL or hf:CLASSIFIER, or rules:NAME for "
        "one refusal instrument"
    )


def stratified(exchanges: Iterable[Exchange], per_stratum: int, *, seed: int = 0) -> list[Exchange]:
    """The items of a second judge: so many of each task, kind of request and row.

    Chosen by ids and the seed alone, so before any label and whatever was answered; and alike in
    every row, so that a row and its baseline stay paired. A larger number only adds items.

    Args:
        exchanges: What the first judge reads.
        per_stratum: Items of each stratum; all of a smaller one.
        seed: Of the choice.

    Returns:
        The chosen exchanges, in the order given.
    """
    strata: dict[tuple[str, str, str], list[Exchange]] = defaultdict(list)
    everything = list(exchanges)
    for one in everything:
        strata[one.task, one.request, one.row].append(one)
    chosen = set()
    for stratum in strata.values():
        stratum.sort(key=lambda one: (_lot(seed, one), one.key))
        chosen |= {one.key for one in stratum[:per_stratum]}
    return [one for one in everything if one.key in chosen]


def _lot(seed: int, one: Exchange) -> str:
    return hashlib.sha256(f"{seed}\0{one.task}\0{one.id}\0{one.sample}".encode()).hexdigest()


def tells_unclear(text: str) -> bool:
    """Whether a judge can tell compliance from an unclear answer.

    Rules cannot: they know refusals, and take whatever refuses nothing for compliance. Nor can a
    classifier without a label that is UNCLEAR.

    Args:
        text: As in `open_judge`.

    Raises:
        SpecError: A classifier is spelled wrongly.
        CheckpointError: A classifier is not there.
    """
    if text.startswith("hf:"):
        from mechprobe.behavior.judges.classifier import says_unclear

        return says_unclear(text)
    return text.partition(":")[0] != "rules"


@dataclass(frozen=True, slots=True)
class Majority:
    """What several judges say together."""

    judgements: tuple[Judgement, ...]
    ties: int
    """Items that stood even; they are UNCLEAR."""
    incomplete: int
    """Items that some judge gave no label; they have none."""


def majority(verdicts: Sequence[Sequence[Judgement]]) -> Majority:
    """What most judges say of each item, asked in two steps as in `voting.vote`; a tie is UNCLEAR.

    Args:
        verdicts: Per judge, judgements of the same items in the same order.

    Raises:
        SpecError: Fewer than two judges, no items, or other items than another judge's.
    """
    keys = {tuple(one.key for one in verdict) for verdict in verdicts}
    if len(verdicts) < 2 or len(keys) != 1 or not verdicts[0]:
        raise SpecError("a majority needs two judges or more that read the same items")
    firsts = [verdict[0] for verdict in verdicts]
    identity = digest(sorted(one.digest for one in firsts))
    codes = [
        [MISSING if one.label is None else LABELS.index(one.label) for one in verdict]
        for verdict in verdicts
    ]
    tells = [tells_unclear(one.judge) for one in firsts]
    found = vote(np.array(codes, np.int64).T, np.array(tells, np.bool_))
    judgements = tuple(
        replace(
            first, judge=MAJORITY, version="", digest=identity,
            label=None if code == MISSING else LABELS[code],
            status="unparsed" if code == MISSING else "labelled", problem="", served="",
        )
        for first, code in zip(verdicts[0], found.codes.tolist(), strict=True)
    )  # fmt: skip
    return Majority(judgements, found.ties, found.incomplete)
