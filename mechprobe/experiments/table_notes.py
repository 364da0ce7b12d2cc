"""Lines below the matrix in a terminal: findings and gaps that no column has room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mechprobe.experiments.probe_columns import MARK
from mechprobe.experiments.table import BLIND, left_out, namer

Row = Mapping[str, str]


def notes(rows: Sequence[Row], *, blind: bool) -> list[str]:
    """Return lines on blind probes, on shifts of confidence, and on why a field is a dash.

    Args:
        rows: Of one model, as text.
        blind: Whether a number is marked that does not show a loss.
    """
    mark = f"{BLIND} this number does not show that the checkpoint lost refusals."
    return [*([mark] if blind else []), *_confidence(rows), *_missing(rows)]


def _confidence(rows: Sequence[Row]) -> Iterator[str]:
    moved = []
    for row in rows:
        ends = [float(row.get(f"top1_shift_{end}") or 0) for end in ("low", "high")]
        if ends[0] > 0 or ends[1] < 0:
            now = float(row["top1_harmful"])
            was = now - float(row["top1_shift"])
            moved.append(f"{namer(rows)(row)} {was:.2f} → {now:.2f}")
    if moved:
        yield (
            "Confidence changed (probability of the likeliest first token, harmful prompts): "
            f"{', '.join(moved)}."
        )


def _missing(rows: Sequence[Row]) -> Iterator[str]:
    if empty := left_out(rows):
        yield (
            f"No row has: {', '.join(empty)}. The spec does not ask for it, or a line below says "
            "why."
        )
    found: dict[str, list[str]] = {}
    for row in rows:
        for reason in filter(None, row.get("not_measured", "").split(MARK)):
            found.setdefault(reason, []).append(namer(rows)(row))
    for reason, where in found.items():
        yield f"Not measured ({', '.join(where)}): {reason}."
