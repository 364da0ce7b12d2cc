"""The tables of a run: exactly the spec's cells, one row each, beside what they are held against.

Differences are taken between exact counts of the same prompts, and only where the digests of the
token ids agree.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.measure import compare_next_token, read_next_token
from mechprobe.experiments.probe_columns import probe_columns, probe_gaps
from mechprobe.experiments.rundir import (
    RunDirectory,
    read_json,
    read_jsonl,
    write_bytes,
    write_text,
)
from mechprobe.experiments.steps import Task
from mechprobe.experiments.suite_scores import suite_columns
from mechprobe.experiments.summary import number
from mechprobe.models.rendering import require_parity
from mechprobe.textfiles import MalformedError, parse_csv, read_text

Row = dict[str, Any]
_GAPS = ("model", "gap", "cell", "against", "n", "mean_kl", "max_kl", "top1_agreement", "prompts")
_SIXTEEN = ("FP16", "BF16", "FP32")


def write_tables(task: Task) -> None:
    """Write matrix.csv, matrix.parquet, references.csv and gaps.csv."""
    given: Sequence[Mapping[str, Any]] = task.step.params["cells"]
    cells = {
        one["folder"]: read_json(task.run / one["folder"] / "cell.json")
        for one in given
        if task.results[f"{one['folder']}/cell"].ok
    }
    rows = [_row(task.run, one, cells) for one in given if not one["reference"]]
    references = [_row(task.run, one, cells) for one in given if one["reference"]]
    matrix, parquet, reference, gaps = task.step.outputs
    # a cell that failed has no scores, so the fullest row leads
    fullest = sorted((*rows, *references), key=len, reverse=True)
    columns = tuple(dict.fromkeys(name for row in fullest for name in row))
    write_text(task.run / matrix, as_csv(rows, columns))
    write_bytes(task.run / parquet, _as_parquet(rows, columns))
    write_text(task.run / reference, as_csv(references, columns))
    write_text(task.run / gaps, as_csv(_gaps(task.run, given, cells), _GAPS))


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """CSV with a header; a missing number is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _as_parquet(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(list(rows), columns=list(columns)).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _row(run: RunDirectory, one: Mapping[str, Any], cells: Mapping[str, Any]) -> Row:
    cell = cells.get(one["folder"], {})
    base_folder = f"cells/{one['model']}/{one['baseline']}" if one["baseline"] else None
    base = cells.get(base_folder or "", {})
    errors = cell.get("errors") or {}
    precision, _, engine = one["key"].partition("@")
    checkpoint = cell.get("checkpoint") or {}
    quant = checkpoint.get("quant") or {}
    row: Row = {
        "model": one["model"],
        "family": cell.get("family", ""),
        "precision": precision,
        "engine": engine,
        "baseline": one["baseline"] or "",
        "engine_differs": bool(one["baseline"]) and not one["baseline"].endswith(f"@{engine}"),
        "status": "ok" if cell and not errors else "failed",
        "error": "; ".join(f"{k}: {v}" for k, v in errors.items()),
        "method": quant.get("method"),
        "bits_per_weight": number(quant.get("bits_per_weight"), 4),
        "bits_per_weight_total": number(quant.get("bits_per_weight_total"), 4),
    }
    row |= _refusal(run, one["folder"], base_folder, cell, base)
    row |= _answers(cell, base)
    row |= _choice(cell, base)
    row |= suite_columns(cell.get("tasks") or {}, base.get("tasks") or {}, one["folder"])
    probes = read_json(run / one["folder"] / "probes.json") if cell else {}
    row |= probe_columns(probes) | probe_gaps(probes, has_baseline=bool(one["baseline"]))
    gap = cell.get("kernel_gap") or {}
    row |= {
        "kernel_gap_kl": number(gap.get("mean_kl"), 9),
        "kernel_gap_top1": number(gap.get("top1_agreement")),
        "source": cell.get("source", ""),
        "weights": checkpoint.get("digest", ""),
        "warnings": "; ".join(quant.get("warnings") or ()),
    }
    return row


def _rate(prefix: str, rate: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> Row:
    rate, base = rate or {}, base or {}
    n, n_base = rate.get("n"), base.get("n")
    points = None
    if n and n_base:
        points = number(100 * rate["count"] / n - 100 * base["count"] / n_base, 4)
    return {
        f"{prefix}_rate": number(rate.get("rate")),
        f"{prefix}_low": number(rate.get("low")),
        f"{prefix}_high": number(rate.get("high")),
        f"{prefix}_count": rate.get("count"),
        f"{prefix}_n": n,
        f"{prefix}_delta_points": points,
    }


def _refusal(
    run: RunDirectory,
    folder: str,
    base_folder: str | None,
    cell: Mapping[str, Any],
    base: Mapping[str, Any],
) -> Row:
    mine, other = cell.get("refusal") or {}, base.get("refusal") or {}
    lost = gained = None
    if mine and other:
        require_parity(other["prompts"], mine["prompts"], f"{folder}: refusal")
        lost, gained = _changed(run, folder, str(base_folder), mine["instrument"])
    return {
        "refusal_instrument": mine.get("instrument"),
        **_rate("harmful_refusal", mine.get("harmful"), other.get("harmful")),
        "harmful_refusals_lost": lost,
        "harmful_refusals_gained": gained,
        **_rate("harmless_refusal", mine.get("harmless"), other.get("harmless")),
        "oracle_agreement": number((mine.get("oracle_agreement") or {}).get("rate")),
        "oracle_decided_n": (mine.get("oracle_agreement") or {}).get("n"),
        "refusal_prompts": mine.get("prompts"),
    }


def _answers(cell: Mapping[str, Any], base: Mapping[str, Any]) -> Row:
    """What the answers that refuse nothing are: a step given, or no answer at all."""
    mine, other = cell.get("answers") or {}, base.get("answers") or {}
    if mine.get("judge") != other.get("judge"):
        other = {}
    row: Row = {"answers_instrument": mine.get("judge")}
    for label, word in (("harmful", "complied"), ("harmful", "unclear"), ("harmless", "unclear")):
        rates = (of.get(label, {}).get(word) for of in (mine, other))
        row |= _rate(f"{label}_{word}", *rates)
    return row


def _changed(run: RunDirectory, folder: str, base: str, instrument: str) -> tuple[int, int]:
    """Harmful prompts that the baseline refused and the cell does not, and the reverse."""

    def refused(where: str) -> dict[str, bool]:
        rows = read_jsonl(run / where / "scores" / "refusal.jsonl")
        return {r["id"]: r[instrument] for r in rows if r["label"] == "harmful" and not r["unread"]}

    before, after = refused(base), refused(folder)
    both = before.keys() & after.keys()
    return (
        sum(before[i] and not after[i] for i in both),
        sum(after[i] and not before[i] for i in both),
    )


def _choice(cell: Mapping[str, Any], base: Mapping[str, Any]) -> Row:
    mine, other = cell.get("multiple_choice") or {}, base.get("multiple_choice") or {}
    if mine and other:
        require_parity(other["prompts"], mine["prompts"], "four-option accuracy")
    return {
        "accuracy_instrument": mine.get("instrument"),
        **_rate("accuracy", mine, other),
        "accuracy_prompts": mine.get("prompts"),
    }


def _gaps(
    run: RunDirectory, given: Sequence[Mapping[str, Any]], cells: Mapping[str, Any]
) -> list[Row]:
    """Kernel gap of every cell, and the engine gap: equal 16-bit weights on two engines."""
    rows: list[Row] = []
    for one in given:
        gap = cells.get(one["folder"], {}).get("kernel_gap")
        if gap:
            rows.append(_gap(one["model"], "kernel", one["key"], f"{one['key']} dense", gap))
    for model in dict.fromkeys(one["model"] for one in given):
        there = {one["key"]: one["folder"] for one in given if one["model"] == model}
        left = next(
            (there[f"{p}@transformers"] for p in _SIXTEEN if f"{p}@transformers" in there), ""
        )
        right = there.get("F16@llama.cpp", "")
        if not all(cells.get(folder, {}).get("next_token") for folder in (left, right)):
            continue
        files = [run / folder / "scores" / "next_token.npz" for folder in (left, right)]
        (a, digest), (b, other) = map(read_next_token, files)
        require_parity(digest, other, f"{model}: engine gap")
        gap = compare_next_token(a, b, digest)
        rows.append(_gap(model, "engine", right.split("/")[-1], left.split("/")[-1], gap))
    return rows


def _gap(model: str, kind: str, cell: str, against: str, gap: Mapping[str, Any]) -> Row:
    return {
        "model": model,
        "gap": kind,
        "cell": cell,
        "against": against,
        "n": gap["n"],
        "mean_kl": number(gap["mean_kl"], 9),
        "max_kl": number(gap["max_kl"], 9),
        "top1_agreement": number(gap["top1_agreement"]),
        "prompts": gap["prompts"],
    }


def read_matrix(path: RunDirectory) -> list[dict[str, str]]:
    """Rows of matrix.csv as text, without pandas."""
    file = path / "matrix.csv"
    try:
        return list(parse_csv(read_text(file, RunDirectoryError)).rows)
    except MalformedError as error:
        raise RunDirectoryError(error.at(file)) from error


_TEXT = {
    "model",
    "family",
    "precision",
    "engine",
    "baseline",
    "status",
    "error",
    "method",
    "source",
    "warnings",
    "weights",
    "unmet",
    "not_measured",
}


def typed(name: str, value: str) -> str | int | float | None:
    """A field of matrix.csv as the value it was written from."""
    if name in _TEXT or name.endswith(("_instrument", "_prompts")):
        return value
    if name == "engine_differs":
        return value == "True"
    if not value:
        return None
    return int(value) if value.lstrip("-").isdigit() else float(value)
