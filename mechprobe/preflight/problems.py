"""The checks by name, and what they found: every mistake, not the first alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal, get_args

from mechprobe.errors import MechprobeError, PreflightError, Problem

Check = Literal[
    "spec",
    "source",
    "header",
    "precision",
    "architecture",
    "same model",
    "vocabulary",
    "quantizer",
    "layer",
    "device",
    "prompts",
    "scorer",
    "output",
]
CHECKS: Final[Mapping[Check, str]] = MappingProxyType(
    {
        "spec": "a field, name or baseline of a spec that is wrong",
        "source": "a checkpoint, tokenizer, encoder or classifier that is not there",
        "header": "weights that are truncated, corrupt, split, or not those of the configuration",
        "precision": "a label that the tensors do not have",
        "architecture": "an architecture that cannot be hooked, where probes look inside",
        "same model": "a baseline of another architecture, depth or width",
        "vocabulary": "tokens other than those of the tokenizer that renders the prompts; "
        "refusal tokens that it lacks",
        "quantizer": "a checkpoint that cannot be made: of a quantized folder, "
        "of a GGUF that cannot be dequantized, without its tool",
        "layer": "a layer that the model does not have",
        "device": "a device that torch does not know or cannot use",
        "prompts": "a prompt, question or chat template file that is missing or malformed",
        "scorer": "an unknown refusal scorer, task or judge",
        "output": "a place that cannot be written",
    }
)
"""What each check refuses; docs/checks.md says where it is made and which test shows it."""
assert set(CHECKS) == set(get_args(Check))


class Problems:
    """Mistakes in the order in which they were found, each once."""

    def __init__(self) -> None:
        self._found: list[tuple[Problem, MechprobeError]] = []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._found)

    @contextmanager
    def of(self, check: Check, where: str = "") -> Iterator[None]:
        """Take down an error of the block, which ends there, and go on after it."""
        try:
            yield
        except MechprobeError as error:
            self.add(check, where, error)

    def add(self, check: Check, where: str, error: MechprobeError) -> None:
        """Take down one mistake, or each of an error that holds several."""
        several = error.problems if isinstance(error, PreflightError) else ()
        for found in several or (Problem(check, where, str(error)),):
            if found not in self.listed:
                self._found.append((found, error))

    def add_all(self, others: Problems) -> None:
        """Take down what another look found."""
        for problem, error in others._found:
            if problem not in self.listed:
                self._found.append((problem, error))

    @property
    def listed(self) -> list[Problem]:
        """As they were found."""
        return [problem for problem, _ in self._found]

    @property
    def merged(self) -> list[Problem]:
        """Each line once, with all the cells that it is about."""
        by_line: dict[str, list[Problem]] = {}
        for problem in self.listed:
            by_line.setdefault(problem.said, []).append(problem)
        return [
            replace(each[0], where=", ".join(dict.fromkeys(one.where for one in each if one.where)))
            for each in by_line.values()
        ]

    def require_none(self, *, listed: bool = False) -> None:
        """Raise what was found.

        Args:
            listed: Whether a single mistake is listed as well.

        Raises:
            MechprobeError: The mistake itself, where there is one.
            PreflightError: One line for each mistake.
        """
        if len(self._found) == 1 and not listed:
            raise self._found[0][1]
        if self._found:
            raise PreflightError(self.merged)
