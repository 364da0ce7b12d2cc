"""Numbers of long work, kept as they are computed: a killed probe goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.journal import Journal
from mechprobe.probes.counting import counting

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

_SCHEMA = 2
"""Raised when the same inputs give other numbers."""


class PartialResults:
    """The unfinished work of one cell: rows of numbers by name, in a journal for each probe."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read nothing yet; without a folder, nothing is kept."""
        self._folder = folder
        self.reused_tokens = 0.0
        """Through the model in an earlier process, for the rows that were reused since."""

    def open(self, name: str, checkpoint: Checkpoint, *inputs: Any) -> PartialRows:
        """Go on with a piece of work, or begin it where its inputs are others than they were.

        Args:
            name: Of the piece of work.
            checkpoint: What its numbers are computed with.
            inputs: All that they depend on, arrays and plain values. Outputs of the model as it is
                stand for its weights, its prompts, and what intervenes already.
        """
        if self._folder is None:
            return PartialRows(self, checkpoint, None)
        key = hashlib.sha256(str(_SCHEMA).encode())
        for each in inputs:
            array = isinstance(each, np.ndarray)
            key.update(each.tobytes() if array else json.dumps(each).encode())
        journal = Journal(self._folder / f"{name}.journal", key.hexdigest())
        return PartialRows(self, checkpoint, journal)

    def discard(self) -> None:
        """Remove everything: the work is done and its results are written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self.reused_tokens = 0.0


class PartialRows:
    """Rows of numbers of one piece of work, by name."""

    def __init__(
        self, results: PartialResults, checkpoint: Checkpoint, journal: Journal | None
    ) -> None:
        """Read what the journal holds."""
        self._results, self._checkpoint, self._journal = results, checkpoint, journal
        self._rows: dict[str, dict[str, Any]] = {}
        if journal is not None:
            batches = journal.read()
            journal.rewrite(batches)
            self._rows = {row["name"]: row for batch in batches for row in batch}

    def get(
        self, name: str, compute: Callable[..., Sequence[float] | NDArray[Any]], *given: Any
    ) -> NDArray[np.float64]:
        """Return what `compute(*given)` gives, or gave in a process that was killed."""
        if name in self._rows:
            row = self._rows[name]
            self._results.reused_tokens += row["tokens"]
            return np.array([float.fromhex(number) for number in row["numbers"]])
        with counting(self._checkpoint) as count:
            numbers = np.asarray(compute(*given), np.float64)
        if self._journal is not None:
            exact = [number.hex() for number in numbers.tolist()]
            self._journal.append([{"name": name, "tokens": count.tokens, "numbers": exact}])
        return numbers


NOTHING_KEPT = PartialResults()
