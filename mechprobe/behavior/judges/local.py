"""Judges that cost nothing: the rules, and the oracle of the organisms' world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mechprobe
from mechprobe.behavior.judges.base import BEHAVIOURS, Opinion
from mechprobe.behavior.refusal import RefusalLabel, get_instrument, rules_label
from mechprobe.behavior.tasks.jailbreak import unwrapped
from mechprobe.errors import JudgeError
from mechprobe.organisms import grammar, oracle
from mechprobe.organisms.solve import solve


class LocalJudge:
    """A pure function from an exchange to a label."""

    version = ""
    paid = False
    tries = 1

    def __init__(
        self, name: str, label: Callable[[str, str], RefusalLabel], about: Mapping[str, Any]
    ) -> None:
        """A judge of this name; `label` takes prompt and answer."""
        self.name = name
        self.about: Mapping[str, Any] = {"judge": name, "mechprobe": mechprobe.__version__, **about}
        self._label = label

    def opinions(
        self, pairs: Iterable[tuple[str, str]], attempt: int
    ) -> Iterator[tuple[int, Opinion]]:
        """The label of each pair, in order."""
        for number, (prompt, answer) in enumerate(pairs):
            yield number, Opinion(self._label(prompt, answer))

    def tokens(self, prompt: str, answer: str) -> tuple[int, int]:
        """Nothing."""
        return 0, 0

    def close(self) -> None:
        """Nothing is held."""


def rules_judge(name: str | None = None) -> LocalJudge:
    """`rules`: the word lists of `mechprobe.behavior.refusal`; the prompt is not looked at.

    Args:
        name: Of one instrument, for `rules:NAME`: what it reads as a refusal is a full one.

    Raises:
        SpecError: There is no such instrument.
    """
    if name is None:
        reads = {"reads": get_instrument("rules").digest}
        return LocalJudge("rules", lambda _, answer: rules_label(answer), reads)
    instrument = get_instrument(name)

    def label(prompt: str, answer: str) -> RefusalLabel:
        return "FULL_REFUSAL" if instrument(answer) else "COMPLIANCE"

    return LocalJudge(f"rules:{name}", label, {"reads": instrument.digest})


def oracle_judge() -> LocalJudge:
    """`oracle`: the grammar of the organisms' world, the ground truth for every other judge."""
    return LocalJudge("oracle", _oracle_label, {"reads": [oracle.VERSION, oracle.FORMS]})


def _oracle_label(prompt: str, answer: str) -> RefusalLabel:
    """The oracle's label; a jailbreak wrapper is taken off the prompt first.

    Raises:
        JudgeError: The prompt is none of the organisms' world.
    """
    prompt = unwrapped(prompt)
    if grammar.parse(prompt) is None and solve(prompt) is None:
        raise JudgeError(
            "oracle: a prompt is not of the organisms' world, and of others the oracle knows "
            "nothing; use rules, openai:MODEL@URL or hf:CLASSIFIER"
        )
    return BEHAVIOURS[oracle.judge(prompt, answer).behaviour]
