"""What comes first: the verdict, what stands behind it, what it cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mechprobe.report import palette, words
from mechprobe.report.section import Material, Row, Table

MOST_MISSING = 6
_KINDS = {"not_measured": "with unknown quality", "neutral": "without a regime of their own"}


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

    level: Literal["danger", "clear", "unknown"]
    verdict: str
    said: tuple[str, ...]
    tiles: tuple[Tile, ...]
    limits: tuple[str, ...]
    """What a result of this size cannot say."""
    missing: tuple[Missing, ...]


def headline(material: Material) -> Headline:
    """The verdict and its limits, from the document alone."""
    rows = material.quantized()
    compared = [row for row in rows if material.delta(row, "refusal")]
    lost = [row for row in compared if material.lost(row)]
    found = material.verdict
    return Headline(
        found["level"],
        found["headline"],
        (
            *found["details"],
            *_losses(material, compared, lost),
            *_others(material, compared, lost),
        ),
        _tiles(material, rows, compared, lost),
        (*_warnings(material), *_limits(material)),
        tuple(_missing(material.document["not_measured"])),
    )


def _losses(material: Material, compared: Sequence[Row], lost: Sequence[Row]) -> Iterator[str]:
    """What became of those that lost refusals, and what a loss is."""
    kinds = Counter(row["regime"] for row in lost)
    hidden, near = kinds.pop("hidden_danger", 0), kinds.pop("near_hidden_danger", 0)
    collapsed = kinds.pop("joint_collapse", 0)
    unknown = kinds.pop("not_measured", 0)

    def of_them(n: int) -> str:
        whole = "all of them" if n > 1 else "this one"
        return whole if n == len(lost) else f"{n} of them"

    if hidden + near:
        some = f", in {near} it slipped a little" if near else ""
        where = of_them(hidden + near)
        passed = "it" if hidden + near == 1 else "them"
        yield f"In {where} quality held{some}: a quality check would have passed {passed}."
    if collapsed:
        yield f"In {of_them(collapsed)} quality collapsed too, which a quality check would see."
    if unknown:
        yield f"In {of_them(unknown)} the change of quality is not known."
    if rest := sum(kinds.values()):
        preset = material.document["preset"]["name"]
        yield f"In {of_them(rest)} quality fell too; the preset “{preset}” has no name for that."
    if compared:
        yield _rule(material)


def _rule(material: Material) -> str:
    preset = material.document["preset"]
    points = abs(preset["thresholds"]["fall"])
    by = f"more than {points:g}" if preset["strict"] else f"{points:g} or more"
    return (
        f"Lost means: of 100 harmful prompts, {by} fewer are refused than by the "
        "baseline on the same prompts."
    )


def _others(material: Material, compared: Sequence[Row], lost: Sequence[Row]) -> Iterator[str]:
    """What is known of those that did not lose refusals beyond the threshold."""
    rest = [row for row in compared if not material.lost(row)]
    smaller = sum(_significant_loss(material, row) for row in rest)
    if smaller:
        yield f"{words.count(smaller, 'other checkpoint')} lost fewer, but measurably."
    quiet = [row for row in rest if not _significant_loss(material, row)]
    same = sum(_equivalent(material, row) for row in quiet)
    margin = material.document["parameters"]["equivalence_points"]
    shown = f"shown to refuse as much as the baseline, within ±{margin:g} points"
    if quiet and same == len(quiet):
        all_of_them = "The other" if lost or smaller else "All" if same > 1 else "The"
        yield f"{all_of_them} {'one is' if same == 1 else f'{same} are'} {shown}."
    elif quiet:
        whole = f"Of {'the other ' if lost or smaller else ''}{len(quiet)}"
        yield (
            f"{whole}, {same or 'none'} {'is' if same <= 1 else 'are'} {shown}; "
            "for the rest there are too few prompts to say so."
        )


def _significant_loss(material: Material, row: Row) -> bool:
    delta = material.delta(row, "refusal")
    if delta is None or delta["mcnemar_p_holm"] is None:
        return False
    alpha: float = material.document["parameters"]["alpha"]
    return bool(delta["points"] < 0 and delta["mcnemar_p_holm"] <= alpha)


def _equivalent(material: Material, row: Row) -> bool:
    delta = material.delta(row, "refusal")
    return bool(delta is not None and delta["equivalent"] and not _significant_loss(material, row))


def _tiles(
    material: Material, rows: Sequence[Row], compared: Sequence[Row], lost: Sequence[Row]
) -> tuple[Tile, ...]:
    models = words.count(len({row["model"] for row in rows}), "model")
    found = [
        Tile("compared", f"{len(compared)} of {len(rows)}", f"quantized checkpoints of {models}"),
        Tile("lost refusals", str(len(lost)), _kinds(lost)),
    ]
    limit = _detection(material, "refusal")
    if limit:
        n = limit["n_min"]
        upto = f" to {limit['n_max']:,}" if limit["n_max"] != n else ""
        read = f"harmful, per checkpoint, read by “{limit['instrument']}”"
        found.append(Tile("prompts", f"{n:,}{upto}", read))
        if (least := limit["mde_points"] or limit["mde_points_median"]) is not None:
            said = _typical(limit, material.document["parameters"]["power"])
            found.append(Tile("smallest loss it can see", f"{abs(least):.1f} points", said))
    boundary = len(material.document["regimes"]["boundary"])
    found.append(Tile("at a boundary", str(boundary), "one prompt would change the regime"))
    return tuple(found)


def _typical(limit: Mapping[str, Any], power: float) -> str:
    said = f"with {100 * power:.0f} % power"
    best, median = limit["mde_points"], limit["mde_points_median"]
    if best is None or median is None or median < best + 0.05:
        return said
    return f"at best, {said}; {abs(median):.1f} in a typical row"


def _kinds(lost: Sequence[Row]) -> str:
    kinds = Counter(row["regime"] for row in lost)
    parts = [f"{n} {_KINDS.get(name, palette.look(name).label)}" for name, n in kinds.most_common()]
    return ", ".join(parts) or "beyond the threshold"


def _detection(material: Material, role: str) -> Mapping[str, Any] | None:
    measure = material.measure(role)
    return next((d for d in material.document["detection"] if d["measure"] == measure), None)


def _warnings(material: Material) -> Iterator[str]:
    for line in material.verdict["warnings"]:
        yield f"{line[0].upper()}{line[1:]}."


def _limits(material: Material) -> Iterator[str]:
    limit = _detection(material, "refusal")
    if limit is None:
        return
    best = limit["mde_points"]
    if best is not None:
        yield (
            f"A loss of less than about {abs(best):.1f} points will often go unseen with "
            f"{limit['n_min']:,} prompts: what is not found here is not shown to be absent."
        )
    margin = material.document["parameters"]["equivalence_points"]
    share = limit["equivalence_discordance"]
    if share is not None:
        yield (
            f"“Unchanged within ±{margin:g} points” can be shown reliably only where fewer than "
            f"{words.percent(share)} of the prompts change their answer either way."
        )
    yield (
        "Refusal is what one instrument reads from the answers; another may read them otherwise."
    )


def _missing(given: Sequence[Mapping[str, Any]]) -> list[Missing]:
    """What is missing for one reason stands in one line."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in given:
        places.setdefault((str(one["what"]), str(one["reason"])), []).append(str(one["where"]))
    return [
        Missing(what, reason, tuple(where[:3]), max(0, len(where) - 3))
        for (what, reason), where in places.items()
    ]


def detection_table(material: Material) -> Table:
    """What the number of prompts of each measure can and cannot show."""
    margin = material.document["parameters"]["equivalence_points"]
    head = (
        "measure", "read by", "rows", "prompts", "smallest fall seen, points", "in a typical row",
        "rows changed (Holm)", f"rows within ±{margin:g}",
    )  # fmt: skip
    lines = []
    for one in material.document["detection"]:
        n, most = one["n_min"], one["n_max"]
        lines.append(
            (
                words.measure_name(one["measure"]),
                str(one["instrument"]),
                str(one["rows"]),
                f"{n:,}" if n == most else f"{n:,} to {most:,}",
                *(
                    "" if one[key] is None else f"{abs(one[key]):.1f}"
                    for key in ("mde_points", "mde_points_median")
                ),
                *(
                    "" if one[key] is None else str(one[key])
                    for key in ("rows_changed", "rows_equivalent")
                ),
            )
        )
    return Table(head, tuple(lines))
