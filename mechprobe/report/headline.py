"""What comes first: the verdict, what stands behind it, what it cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mechprobe.report import palette, words
from mechprobe.report.section import Material, Row

Level = Literal["danger", "clear", "unknown"]
MOST_MISSING = 6


@dataclass(frozen=True, slots=True)
class Tile:
    """One number with what it is of."""

    name: str
    value: str
    said: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that was not measured, and where."""

    what: str
    reason: str
    where: tuple[str, ...]
    more: int


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of the page."""

    level: Level
    verdict: str
    said: tuple[str, ...]
    tiles: tuple[Tile, ...]
    missing: tuple[Missing, ...]


def headline(material: Material) -> Headline:
    """The verdict and its limits, from the document alone."""
    rows = material.quantized()
    judged = [row for row in rows if row["regime"] != "not_measured"]
    danger = [row for row in rows if row["danger"]]
    level: Level = "danger" if danger else "clear" if judged else "unknown"
    return Headline(
        level,
        _verdict(material, rows, judged, danger),
        tuple(_said(material, rows, judged, danger)),
        _tiles(material, rows, judged, danger),
        tuple(_missing(material.document["not_measured"])),
    )


def _verdict(
    material: Material, rows: Sequence[Row], judged: Sequence[Row], danger: Sequence[Row]
) -> str:
    if not rows:
        return "No quantized checkpoint was held against a baseline."
    if not judged:
        return "No verdict: nothing could be judged."
    checkpoints = words.count(len(judged), "quantized checkpoint")
    if danger:
        return f"{len(danger)} of {checkpoints} lost refusals."
    return f"No large loss of refusals found in {checkpoints}."


def _said(
    material: Material, rows: Sequence[Row], judged: Sequence[Row], danger: Sequence[Row]
) -> list[str]:
    limits = material.document["preset"]["thresholds"]
    said = []
    kinds = Counter(row["regime"] for row in danger)
    hidden = kinds["hidden_danger"] + kinds["near_hidden_danger"]
    if hidden:
        alone = hidden == len(danger)
        near = kinds["near_hidden_danger"]
        said.append(
            f"In {'all' if alone else hidden} of them quality held or nearly held"
            f"{f' ({near} nearly)' if near else ''}: a quality check would have passed them."
        )
    if kinds["joint_collapse"]:
        said.append(f"In {kinds['joint_collapse']} of them quality collapsed too.")
    if danger:
        said.append(
            f"Lost refusals means more than {abs(limits['fall']):g} points fewer harmful prompts "
            "refused than by the unquantized baseline."
        )
    smaller = [row for row in judged if not row["danger"] and _significant_loss(material, row)]
    if smaller:
        said.append(
            f"{words.count(len(smaller), 'further checkpoint')} lost refusals measurably, but less "
            "than that."
            if danger
            else f"{words.count(len(smaller), 'checkpoint')} lost refusals measurably, but not "
            f"more than {abs(limits['fall']):g} points."
        )
    shown = [row for row in judged if not row["danger"] and _equivalent(material, row)]
    quiet = len(judged) - len(danger) - len(smaller)
    margin = material.document["parameters"]["equivalence_points"]
    if quiet > 0:
        said.append(
            f"Of the other {quiet}, {len(shown)} are shown to refuse as their baseline does, within "
            f"±{margin:g} points; for the rest these prompts are too few to say so."
            if len(shown) < quiet
            else f"The other {quiet} are shown to refuse as their baseline does, within "
            f"±{margin:g} points."
        )
    if len(judged) < len(rows):
        unknown = words.count(len(rows) - len(judged), "checkpoint")
        said.append(f"{unknown} could not be judged, which is not a pass.")
    return said


def _significant_loss(material: Material, row: Row) -> bool:
    delta = material.delta(row, "refusal")
    if delta is None or delta["mcnemar_p_holm"] is None:
        return False
    alpha: float = material.document["parameters"]["alpha"]
    return bool(delta["points"] < 0 and delta["mcnemar_p_holm"] <= alpha)


def _equivalent(material: Material, row: Row) -> bool:
    delta = material.delta(row, "refusal")
    return bool(
        delta is not None and delta["equivalent"] and not _significant_loss(material, row)
    )


def _tiles(
    material: Material, rows: Sequence[Row], judged: Sequence[Row], danger: Sequence[Row]
) -> tuple[Tile, ...]:
    models = len({row["model"] for row in rows})
    found = [
        Tile(
            "judged",
            f"{len(judged)} of {len(rows)}",
            f"quantized checkpoints, {words.count(models, 'model')}",
        ),
        Tile("lost refusals", str(len(danger)), _kinds(danger)),
    ]
    limit = _detection(material, "refusal")
    if limit:
        n = limit["n_min"]
        upto = f" to {limit['n_max']:,}" if limit["n_max"] != n else ""
        found.append(Tile("prompts", f"{n:,}{upto}", f"harmful, read by “{limit['instrument']}”"))
        if limit["mde_points"] is not None:
            found.append(
                Tile(
                    "smallest loss it could see",
                    f"{abs(limit['mde_points']):.1f} points",
                    _typical(limit, material.document["parameters"]["power"]),
                )
            )
    boundary = len(material.document["regimes"]["boundary"])
    found.append(Tile("at a boundary", str(boundary), "one prompt would change the regime"))
    return tuple(found)


def _typical(limit: Mapping[str, Any], power: float) -> str:
    said = f"at best, with {power:.0%} power".replace("%", " %")
    median = limit["mde_points_median"]
    return said if median is None else f"{said}; {abs(median):.1f} in a typical row"


def _kinds(danger: Sequence[Row]) -> str:
    kinds = Counter(row["regime"] for row in danger)
    parts = [f"{n} {palette.look(name).label}" for name, n in kinds.most_common()]
    return ", ".join(parts) or "beyond the threshold"


def _detection(material: Material, role: str) -> Mapping[str, Any] | None:
    measure = material.measure(role)
    return next((d for d in material.document["detection"] if d["measure"] == measure), None)


def _missing(given: Sequence[Mapping[str, Any]]) -> list[Missing]:
    """What is missing for one reason stands in one line."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in given:
        places.setdefault((str(one["what"]), str(one["reason"])), []).append(str(one["where"]))
    return [
        Missing(what, reason, tuple(where[:3]), max(0, len(where) - 3))
        for (what, reason), where in places.items()
    ]
