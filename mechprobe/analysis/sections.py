"""Sections of the analysis document; docs/analysis.md says what each field is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from mechprobe.analysis.asymmetry import asymmetry
from mechprobe.analysis.matrix import WHO, Matrix
from mechprobe.analysis.regimes import DIVERGENCE, HIDDEN, lost_refusals
from mechprobe.analysis.rows import REFUSAL, Choice, plain, verdicts
from mechprobe.analysis.verdict import label

Section = dict[str, Any]
NO_QUALITY = "no measure was named as quality (`quality` in the spec's `analysis`)"
NO_SECOND = "no second instrument was named (`second_instrument`)"


def preset_section(choice: Choice) -> Section:
    """Thresholds, and what they are held against."""
    names = choice.instruments
    return {
        "name": choice.preset.name,
        "strict": choice.strict,
        "measures": {"quality": choice.quality, "refusal": REFUSAL},
        "instruments": {
            "quality": names.get(choice.quality or ""),
            "refusal": names.get(REFUSAL),
            "second": choice.second,
        },
        "thresholds": choice.preset.thresholds | {"divergence": float(DIVERGENCE)},
        "regimes": list(choice.preset.regimes),
        "danger": list(choice.preset.danger),
    }


def row_sections(matrix: Matrix) -> list[Section]:
    """One entry per row of the matrix."""
    choice, preset = matrix.choice, preset_section(matrix.choice)
    compared = [bool(row["baseline"]) for row in matrix.rows]
    quality = matrix.primary(choice.quality)
    found = verdicts(compared, quality, matrix.primary(REFUSAL), choice)
    seconds = [matrix.of(row, REFUSAL, choice.second) for row in matrix.rows]
    again = verdicts(compared, quality, seconds, choice) if choice.second else found
    cells = matrix.agreement.cells if matrix.agreement else ()
    agreement = {(one.model, one.cell): one for one in cells}
    rows = []
    for i, row in enumerate(matrix.rows):
        verdict, base = found[i], str(row["baseline"])
        shown = {name: one.as_dict() for name, one in matrix.shown(row).items()}
        danger = lost_refusals(shown.get(REFUSAL), preset)
        quality_known = shown.get(choice.quality or "", {}).get("points") is not None
        both = agreement.get((row["model"], row["cell"]))
        second, delta = None, seconds[i]
        if delta and base:
            second = {
                "instrument": choice.second,
                "delta": delta.as_dict(),
                "regime": again[i].regime,
                "changes": again[i].regime != verdict.regime,
            }
        rows.append(
            {name: row[name] for name in WHO}
            | {
                "engine_differs": bool(base) and base.partition("@")[2] != row["engine"],
                "deltas": shown,
                "regime": verdict.regime,
                "regime_strict": verdict.strict,
                "regime_non_strict": verdict.non_strict,
                "boundary": bool(verdict.boundary),
                "boundary_of": list(verdict.boundary),
                "regime_frequency": matrix.frequency[i] if matrix.frequency else None,
                "danger": danger,
                "hidden": verdict.regime in HIDDEN if danger and quality_known else None,
                "second": second,
                "measurement_divergence": both and both.diverges,
                "divergence_points": both and plain(both.points),
            }
        )
    return rows


def regimes_section(rows: Sequence[Section]) -> Section:
    """How many rows are in which regime, and which ones to look at."""

    def count(name: str) -> dict[str, int]:
        return dict(Counter(row[name] for row in rows).most_common())

    def which(name: str) -> list[str]:
        return [label(row) for row in rows if row[name]]

    return {
        "counts": count("regime"),
        "strict": count("regime_strict"),
        "non_strict": count("regime_non_strict"),
        "danger": which("danger"),
        "boundary": which("boundary"),
        "engine_differs": which("engine_differs"),
    }


def asymmetry_section(matrix: Matrix) -> Section:
    """How often refusal moved further than quality."""
    pairs = zip(
        matrix.rows, matrix.primary(matrix.choice.quality), matrix.primary(REFUSAL), strict=True
    )
    compared = [(row["model"], q, r) for row, q, r in pairs if row["baseline"]]
    found = asymmetry(
        [model for model, _, _ in compared],
        [q.points if q else None for _, q, _ in compared],
        [r.points if r else None for _, _, r in compared],
    )
    if not found.n:
        return {"not_measured": "no row has deltas of both quality and refusal"}
    content = {name: plain(value) for name, value in asdict(found).items()}
    names = ("model", "n", "faster")
    content["by_model"] = [dict(zip(names, one, strict=True)) for one in found.by_model]
    return {"quality": matrix.choice.quality, "refusal": REFUSAL, **content}


def agreement_section(matrix: Matrix, rows: Sequence[Section]) -> Section:
    """The two instruments of refusal, and which rows they judge differently."""
    choice, found = matrix.choice, matrix.agreement
    if not choice.second:
        return {"not_measured": NO_SECOND}
    content: Section = {
        "first": choice.instruments.get(REFUSAL),
        "second": choice.second,
        "rows_changing": [label(row) for row in rows if (row["second"] or {}).get("changes")],
    }
    if found is None:
        return content | {"not_measured": f"no answers are known to be read by {choice.second}"}
    ends = {
        f"{name}{suffix}": plain(getattr(estimate, end)) if estimate else None
        for name, estimate in (("share", found.share), ("kappa", found.kappa))
        for suffix, end in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    divergent = [label(row) for row in rows if row["measurement_divergence"]]
    return content | {
        "n": found.n,
        "agree": found.agree,
        **ends,
        "unread": found.unread,
        "divergent": divergent,
        "divergent_n": len(divergent),
    }


def not_measured_section(matrix: Matrix, content: Section) -> list[dict[str, str]]:
    """Everything that is missing, and why."""
    return [
        {"what": what, "where": where, "reason": reason}
        for what, where, reason in _missing(matrix, content)
    ]


def _missing(matrix: Matrix, content: Section) -> Iterator[tuple[str, str, str]]:
    choice = matrix.choice
    if choice.quality is None:
        yield "quality", "matrix", NO_QUALITY
    elif choice.quality not in choice.instruments:
        there = ", ".join(choice.instruments) or "none"
        yield "quality", "matrix", f"{choice.quality} was not measured; there are: {there}"
    if REFUSAL not in choice.instruments:
        yield REFUSAL, "matrix", "no cell has outcomes of it"
    for name, reason in matrix.absent.items():
        yield name, "matrix", reason
    for name, section in content.items():
        if isinstance(section, dict) and section.get("not_measured"):
            yield name, "matrix", section["not_measured"]
    pairings = content["pairings"].get("pairings", ())
    for reason, n in Counter(one["not_measured"] for one in pairings).items():
        if reason:
            yield "pairings", "matrix", f"{n} of {len(pairings)}: {reason}"
    for row in content["rows"]:
        if row["error"]:
            yield "row", label(row), row["error"]
            continue
        for measure, delta in row["deltas"].items():
            if delta["not_measured"]:
                yield measure, label(row), delta["not_measured"]
