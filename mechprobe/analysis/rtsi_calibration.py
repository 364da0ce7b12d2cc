"""A stored calibration: what scores one new checkpoint.

A single checkpoint must be scaled by rows that it is no part of; a batch that scales itself moves
its own yardstick. mechprobe ships no calibration: fit one on your own matrix, with the prompts, the
decoding and the refusal instrument that the new checkpoint will be read with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import mechprobe
from mechprobe.analysis.rtsi import CIRCULARITY
from mechprobe.analysis.rtsi_scale import Calibration, bands
from mechprobe.analysis.templates import (
    BOTH,
    DEFINITIONS,
    DELTAS,
    FEATURES,
    GAINED,
    LOST,
    NEITHER,
    TemplateFeatures,
)
from mechprobe.errors import TableError
from mechprobe.textfiles import read_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a calibration comes from."""

    source: str
    """Name of the table or run, as the user gave it, without folders."""
    rows: str
    """SHA-256 of the calibration rows, whatever their order."""
    instrument: str
    """What read the refusals; "" where nobody said."""
    mechprobe: str


@dataclass(frozen=True, slots=True)
class StoredCalibration:
    """A calibration as its file holds it."""

    schema: int
    calibration: Calibration
    provenance: Provenance

    def as_dict(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "schema": self.schema,
            "kind": "rtsi-calibration",
            **self.calibration.as_dict(),
            "definitions": dict(DEFINITIONS),
            "circularity": CIRCULARITY,
            "provenance": asdict(self.provenance),
        }

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            TableError: It cannot be written.
        """
        try:
            path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise TableError(f"{path}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class CheckpointScore:
    """One new checkpoint, by a stored calibration."""

    score: float | None
    """None where there is no template to compare."""
    band: Literal["LOW", "MODERATE", "HIGH", "UNKNOWN"]
    deltas: dict[str, float]
    outside: tuple[str, ...]
    """Features that drifted further than in any calibration row; they count as the furthest."""
    notes: tuple[str, ...] = ()
    """What makes the score less comparable."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "circularity": CIRCULARITY}


def store(
    calibration: Calibration, rows: pd.DataFrame, *, source: str, instrument: str = ""
) -> StoredCalibration:
    """A calibration with its provenance.

    Args:
        calibration: As `fit` made it.
        rows: The rows that it was fitted on, as `drift` returns them.
        source: Where they come from.
        instrument: What read the refusals.
    """
    return StoredCalibration(
        SCHEMA,
        calibration,
        Provenance(Path(source).name, rows_digest(rows), instrument, mechprobe.__version__),
    )


def rows_digest(rows: pd.DataFrame) -> str:
    """SHA-256 of the rows' names and numbers, whatever their order and the file's format."""
    columns = ["model", "cell", "refusal_delta", *DELTAS]
    lines = sorted(json.dumps(line) for line in rows[columns].astype(object).to_numpy().tolist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def score_checkpoint(
    calibration: Calibration, candidate: TemplateFeatures, baseline: TemplateFeatures
) -> CheckpointScore:
    """Score and band one checkpoint against its own baseline.

    Both must have answered the same prompts in the same way.
    """
    deltas = [getattr(candidate, name) - getattr(baseline, name) for name in FEATURES]
    now, before = candidate.refusals > 0, baseline.refusals > 0
    template = (BOTH if before else GAINED) if now else (LOST if before else NEITHER)
    return score_deltas(calibration, deltas, template)


def score_deltas(
    calibration: Calibration, deltas: Sequence[float], template: str = BOTH
) -> CheckpointScore:
    """Score and band the deltas of one checkpoint.

    Args:
        calibration: That scales and weighs.
        deltas: Signed, in the order of `FEATURES`.
        template: Which side has refusals, as `drift` says.
    """
    moved = np.asarray(deltas, np.float64)
    worded = template in (BOTH, GAINED)
    score = float(calibration.score(moved[None])[0])
    band = bands([score], [template])[0]
    return CheckpointScore(
        score if worded else None,
        band.item(),
        dict(zip(DELTAS, moved.tolist(), strict=True)),
        calibration.outside(moved) if worded else (),
    )


def load_calibration(path: Path) -> StoredCalibration:
    """Read a stored calibration.

    Raises:
        TableError: The file is missing, damaged, or holds something else; the field is named.
    """
    found = read_json(path, lambda said: TableError(f"{said}; make one with mechprobe rtsi fit"))
    if not isinstance(found, dict) or found.get("kind") != "rtsi-calibration":
        raise TableError(f"{path}: no RTSI calibration; make one with mechprobe rtsi fit")
    if found.get("schema") != SCHEMA:
        raise TableError(
            f"{path}, field 'schema': {found.get('schema')!r} is not {SCHEMA}; fit it again"
        )
    if found.get("definitions") != DEFINITIONS:
        raise TableError(f"{path}, field 'definitions': other features than these; fit it again")
    weights, minima, maxima = (_numbers(path, found, part) for part in _PARTS)
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-9):
        raise TableError(f"{path}, field 'weights': they do not sum to 1")
    if any(least > most for least, most in zip(minima, maxima, strict=True)):
        raise TableError(f"{path}, field 'minima': one exceeds its maximum")
    n, about = found.get("n"), found.get("provenance")
    if not isinstance(n, int) or n < 1:
        raise TableError(f"{path}, field 'n': {n!r} is no count of rows")
    names = Provenance.__slots__
    if not isinstance(about, dict) or not all(isinstance(about.get(k), str) for k in names):
        raise TableError(f"{path}, field 'provenance': needs the texts {', '.join(names)}")
    correlations = found.get("correlations")
    if not isinstance(correlations, dict):
        raise TableError(f"{path}, field 'correlations': missing")
    given = tuple(correlations.get(name) for name in FEATURES)
    if not all(one is None or (type(one) in (int, float) and abs(one) <= 1) for one in given):
        raise TableError(f"{path}, field 'correlations': {given!r} are no correlations")
    return StoredCalibration(
        SCHEMA,
        Calibration(weights, given, minima, maxima, n),
        Provenance(**{name: about[name] for name in names}),
    )


_PARTS = ("weights", "minima", "maxima")


def _numbers(path: Path, found: dict[str, Any], part: str) -> tuple[float, ...]:
    given = found.get(part)
    values = []
    for name in FEATURES:
        value = given.get(name) if isinstance(given, dict) else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or not number or not (math.isfinite(value) and value >= 0):
            raise TableError(f"{path}, field '{part}.{name}': {value!r} is no number from 0 on")
        values.append(float(value))
    return tuple(values)
