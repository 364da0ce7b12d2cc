"""The code behind what a run derives from its measurements: summaries, tables, analysis, report.

To derive is cheap, so a step that derives holds a digest of the code that does it: an upgrade that
changes it writes these files anew, from the same measurements. A step that measures is dear and
says by its `version` when it has to run again.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_RATES = (
    "stats",
    "behavior/rate.py",
    "behavior/refusal.py",
    "behavior/refusal_lists.py",
    "models/thoughts.py",
    "experiments/run_rows.py",
)
_JUDGED = ("experiments/judging.py", "behavior/judges/base.py", *_RATES)
_ANALYSIS = ("analysis", "behavior/judges/voting.py", *_RATES)
_REPORT = ("report", *_ANALYSIS, "experiments/reporting.py")
DERIVING: dict[str, tuple[str, ...]] = {
    "summary": ("experiments/summary.py", "experiments/judge_steps.py", *_JUDGED),
    "tables": (
        "experiments/matrix.py",
        "experiments/measure.py",
        "experiments/probe_columns.py",
        "experiments/suite_scores.py",
        "experiments/summary.py",
        *_RATES,
    ),
    "analysis": (*_ANALYSIS, *_JUDGED, "experiments/analysing.py", "experiments/frames.py"),
    "report": _REPORT,
    "factorial": (*_ANALYSIS, "experiments/factorial_tables.py"),
    "factorial report": (*_REPORT, "experiments/factorial_tables.py"),
}
"""By kind of step, the files and folders of the package that decide what it writes."""


def code_digest(kind: str) -> str:
    """Digest of the code of one kind of derived files, hex."""
    return sources_digest(PACKAGE, DERIVING[kind])


@cache
def sources_digest(root: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 over the names and contents of files and of all files in folders, hex.

    Args:
        root: What the parts lie in.
        parts: Files and folders; compiled files in them do not count.
    """
    found = hashlib.sha256()
    for part in parts:
        inside = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        for file in inside:
            if file.is_file() and "__pycache__" not in file.parts:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                found.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()
