"""Errors that say what is wrong, where, and what to do about it.

Every error that a user can cause is a `MechprobeError`. The command line prints its one line and
exits with `exit_code`; a notebook shows the same line. Anything else that escapes is a defect.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType


class MechprobeError(Exception):
    """Something the user can mend; the message is one line: what, where, what to do."""

    exit_code = 2
    """`ExitCode.COULD_NOT_RUN`."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What the command line prints, a line each."""
        return (str(self),)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake that was found before anything was measured."""

    check: str
    """Which check found it; see `mechprobe.preflight.CHECKS`."""
    where: str
    """The cells, as `model/precision@engine`; empty where `said` names the place."""
    said: str
    """What is wrong and what to do, one line."""

    @property
    def line(self) -> str:
        """The whole message."""
        return f"{self.where}: {self.said}" if self.where else self.said


class PreflightError(MechprobeError):
    """All mistakes that were found before anything was measured."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each mistake."""
        return tuple(problem.line for problem in self.problems)


class CheckpointError(MechprobeError):
    """A checkpoint is missing, gated, truncated, corrupt or of an unsupported kind."""


class CheckpointWarning(UserWarning):
    """A checkpoint was read, and something about it should be known before its numbers are used."""


def warn_of_checkpoint(source: str, lines: Iterable[str]) -> None:
    """Issue one `CheckpointWarning` a line; the command line shows it as a line of its own."""
    for line in lines:
        warnings.warn(f"{source}: {line}", CheckpointWarning, stacklevel=3)


class PrecisionError(CheckpointError):
    """The precision found in the tensors is not the precision that was asked for."""


class ArchitectureError(CheckpointError):
    """The architecture has no entry in the table, or its entry failed the load-time self-check."""


class VocabularyError(CheckpointError):
    """Two tokenizers that must agree do not."""


class TemplateError(MechprobeError):
    """A prompt cannot be rendered: no chat template, or the template refused the messages."""


class PromptFileError(MechprobeError):
    """A prompt file is malformed or empty; the message names file and line."""


class ParityError(MechprobeError):
    """Two results were made from different token ids and must not be compared."""


class HookNameError(MechprobeError):
    """A hook name is unknown, matches nothing, or names a point this architecture lacks."""


class NumericsError(MechprobeError):
    """NaN or infinity where a number is needed; the message names the cell and the place."""


class StoreError(MechprobeError):
    """An activation store is corrupt, truncated, or belongs to another capture."""


class StaleStoreError(StoreError):
    """A store holds another capture, or a damaged one: capturing into it again needs it gone."""


class GenerationError(MechprobeError):
    """An engine could not produce text or log-probabilities."""


class JudgeError(MechprobeError):
    """A judge cannot go on, or its labels cannot be used; what it finished is kept."""


class SpecError(MechprobeError):
    """A spec or an option is wrong; the message names the field, with a line for each mistake."""

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each mistake."""
        return tuple(str(self).splitlines())


class RunDirectoryError(MechprobeError):
    """A run directory is locked, belongs to another spec, or cannot be written."""


class TableError(MechprobeError):
    """A table cannot be analysed: a column is missing or a value is none; the message names it."""


class MissingExtraError(MechprobeError):
    """An optional dependency is not installed; the message ends with the line that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which line installs it.

    Args:
        module: The module's import name, for example `"gptqmodel"`.
        extra: The mechprobe extra that brings it, for example `"quant"`.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed; run: pip install 'mechprobe[{extra}]'"
        ) from error
