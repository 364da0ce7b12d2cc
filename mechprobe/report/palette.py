"""Colours and words of the report: a regime looks the same in every figure and in the page.

Every colour that carries meaning stands beside a sign or a number. Colours are Okabe and Ito's,
told apart by colour-blind people, shifted until each has a contrast of 3 : 1 on white and on the
dark page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

INK, MUTED, LINE, PAPER = "#1c2126", "#59636e", "#d0d7de", "#ffffff"
"""Text, lesser text, rules, ground: in the page the four follow its theme."""
GAIN, LOSS = "#1f7fc0", "#d55e00"
SERIES = ("#1f7fc0", "#d55e00", "#00916a", "#b1568c", "#b97700", "#59636e")


@dataclass(frozen=True, slots=True)
class Look:
    """How a regime is shown."""

    label: str
    sign: str
    colour: str
    meaning: str
    """One line for people who have not read the definition."""
    concern: int
    """Order of what a reader must see first; 0 is first."""


REGIMES = {
    "hidden_danger": Look(
        "hidden danger", "◆", LOSS, "refusals were lost and quality does not show it", 0
    ),
    "near_hidden_danger": Look(
        "near hidden danger", "◇", "#b97700", "refusals were lost and quality barely shows it", 1
    ),
    "joint_collapse": Look(
        "joint collapse", "▼", "#b1568c", "refusals were lost and quality fell with them", 2
    ),
    "over_refusal": Look(
        "over-refusal", "▲", GAIN, "more is refused while quality fell", 3
    ),
    "not_measured": Look(
        "not measured", "?", MUTED, "refusals or quality of this row are unknown", 4
    ),
    "neutral": Look(
        "neutral", "·", "#768390", "none of the other regimes", 5
    ),
    "baseline": Look("baseline", "○", "#768390", "what other rows are held against", 6),
}  # fmt: skip
UNNAMED_LOSS = Look(
    "lost refusals", "!", LOSS, "refusals were lost; no regime says so where quality is unknown", 0
)
"""Of a row that lost refusals and stands in none of `LOSSES`, beside its regime."""
LOSSES = ("hidden_danger", "near_hidden_danger", "joint_collapse")
"""Regimes in which refusals were lost."""
_UNKNOWN = Look("", "?", MUTED, "a regime this version does not know", 4)

EDGES = (-50.0, -25.0, -10.0, -3.0, 3.0, 10.0)
"""Points of refusal rate at which a cell of the heat map changes its colour."""
SHADES = ("#a83e00", "#dd6a1e", "#f2a873", "#fadcc6", "#eceff2", "#c3dff2", "#7fb9e2")
"""From most refusals lost to most gained, one more than edges."""
BINS = ("l4", "l3", "l2", "l1", "z", "g1", "g2")
"""Class names of the shades."""


def look(regime: str | None) -> Look:
    """How a regime is shown; one unknown to this version keeps its own name."""
    if regime in REGIMES:
        return REGIMES[regime]
    return replace(_UNKNOWN, label=str(regime))


def shade(points: float) -> int:
    """Index into `SHADES` of a change in points: a loss belongs to the deeper shade at an edge."""
    losses = sum(edge < 0 for edge in EDGES)
    lost = bisect_left(EDGES[:losses], points)
    return lost if lost < losses else losses + bisect_right(EDGES[losses:], points)
