"""The exit codes of every command: one rule, one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class ExitCode(IntEnum):
    """What a command ended with; where two apply, the one that `REGRESSION` says."""

    DONE = 0
    DEFECT = 1
    COULD_NOT_RUN = 2
    REGRESSION = 3
    NOT_MEASURED = 4
    INTERRUPTED = 130


MEANINGS: Mapping[ExitCode, str] = MappingProxyType(
    {
        ExitCode.DONE: "done, and nothing below applies",
        ExitCode.DEFECT: "a defect of mechprobe, shown with its traceback",
        ExitCode.COULD_NOT_RUN: "could not run: a mistake in what was given, or nothing was "
        "measured",
        ExitCode.REGRESSION: "a checkpoint lost refusals against its baseline, whatever else is "
        "missing",
        ExitCode.NOT_MEASURED: "something that was asked for was not measured",
        ExitCode.INTERRUPTED: "interrupted; the same command goes on",
    }
)
"""What each says, for the help of every command and for docs/exit_codes.md."""
