"""What is not quantization: the gap between engines, and between kernels."""

from __future__ import annotations

from collections.abc import Sequence

from mechprobe.report import words
from mechprobe.report.section import Material, Row, Section, Table, absent

TITLE = "How much of it is not quantization?"
MOST = 12


def gaps_section(material: Material) -> Section:
    """Engine gaps first, then the widest kernel gaps."""
    gaps = material.document["gaps"]
    if not gaps:
        return absent("gaps", TITLE, "no cell was run through two engines or two kernels")
    engine = [row for row in gaps if row["gap"] == "engine"]
    kernel = [row for row in gaps if row["gap"] == "kernel"]
    said = []
    if engine:
        worst = max(engine, key=lambda row: row["mean_kl"])
        said.append(
            "The same 16-bit weights on two engines differ by at most "
            f"{_kl(worst['mean_kl'])} nats (mean KL of the first token) and choose the "
            f"same first token in at least {words.percent(_agreed(engine))} of prompts."
        )
    if kernel:
        worst = max(kernel, key=lambda row: row["mean_kl"])
        said.append(
            "Probes look at dequantized weights, behavior at packed ones: the two differ by at "
            f"most {_kl(worst['mean_kl'])} nats, in {worst['model']} {worst['cell']}."
        )
    differs = material.document["regimes"]["engine_differs"]
    if differs:
        said.append(
            f"{words.count(len(differs), 'row')} held against a baseline on another engine: part "
            "of the change there may be the engine's."
        )
    shown = [*sorted(engine, key=_widest), *sorted(kernel, key=_widest)]
    rows = tuple(
        (
            f"{row['model']} {row['cell']}",
            str(row["against"]),
            str(row["n"]),
            _kl(row["mean_kl"]),
            _kl(row["max_kl"]),
            words.percent(row["top1_agreement"]),
        )
        for row in shown[:MOST]
    )
    head = ("cell", "against", "prompts", "mean KL, nats", "largest KL", "same first token")
    table = Table(head, rows, "Engine gaps, then the widest kernel gaps", len(shown) - len(rows))
    return Section("gaps", TITLE, tuple(said), tables=(table,))


def _agreed(rows: Sequence[Row]) -> float:
    return float(min(row["top1_agreement"] for row in rows))


def _widest(row: Row) -> float:
    return -float(row["mean_kl"])


def _kl(value: float) -> str:
    return f"{value:.2g}"
