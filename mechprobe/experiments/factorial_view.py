"""A finished factorial in a terminal, and as one JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.factorial_plan import TABLES
from mechprobe.experiments.factorial_running import FinishedFactorial
from mechprobe.report import words
from mechprobe.report.factorial import verdict
from mechprobe.report.factorial_rows import harmful, share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Mapping[str, Any]
_LEGEND = (
    "ASR: harmful prompts answered, % of samples; over: benign prompts refused, %; SSI: mean share "
    "of a prompt's commonest label; DFR: prompts whose k samples are not unanimous, %. "
    "[95 %] resamples prompts."
)


def show_finished(finished: FinishedFactorial, out: Path, console: Console) -> None:
    """Print a table per model, the interactions and where the files are."""
    from rich.padding import Padding

    document = finished.document
    if document is not None:
        for model in dict.fromkeys(row["model"] for row in document["rates"]):
            console.print(_table(document, model))
        console.print(Padding(_LEGEND, (0, 0, 1, 0)), style="dim")
        for line in _interactions(document):
            console.print(line, soft_wrap=True)
        console.print(verdict(document), style="bold", soft_wrap=True)
    reused = finished.outcome.count("reused")
    steps = len(finished.plan.steps)
    said = f"Reused all {steps} steps." if reused == steps else f"{steps} steps, {reused} reused."
    where = f"Files: {out}/ (report.html, factorial.csv, factorial.json, labels.parquet)."
    if document is None:
        error = finished.outcome.results[TABLES].error or "No cell could be measured"
        where = f"{error}; what there is lies in {out}/."
    console.print(f"{said} {where}", soft_wrap=True)


def _table(document: Row, model: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=model, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("precision", "T", "ASR [95 %]", "over", "SSI", "DFR [95 %]", "k"):
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    benign = {
        (row["cell"], row["temperature"]): row
        for row in document["rates"]
        if row["model"] == model and row["request"] == "benign"
    }
    last = ""
    for row in harmful(document):
        if row["model"] != model:
            continue
        over = benign.get((row["cell"], row["temperature"]))
        known = over is not None and over["over_refusal"] is not None
        table.add_row(
            row["precision"] if row["cell"] != last else "",
            f"{row['temperature']:g}",
            share(row, "asr"),
            f"{100 * over['over_refusal']:.1f}" if known and over else words.NOTHING,
            words.NOTHING if row["ssi"] is None else f"{row['ssi']:.3f}",
            share(row, "dfr"),
            str(row["k"]),
        )
        last = row["cell"]
    return table


def _interactions(document: Row) -> Iterator[str]:
    """One line for each quantized cell: CDI at the highest temperature, and the GEE."""
    for row in document["interactions"]:
        top = row["cdi"][-1]
        value, low, high = (
            None if top[name] is None else 100 * top[name] for name in ("value", "low", "high")
        )
        gee = row["gee"]
        tested = (
            f"GEE {words.signed(gee['coefficient'], 2)} log-odds per unit T "
            f"{words.interval(gee['low'], gee['high'], 2)}, Holm p {words.p_value(gee['p_holm'])}"
            if gee["status"] == "ok"
            else f"GEE not measured: {gee['why']}"
        )
        yield (
            f"{row['model']} {row['cell']}: CDI at T = {top['temperature']:g} "
            f"{words.signed(value)} points {words.interval(low, high)}; {tested}"
        )


def document_of(finished: FinishedFactorial) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": str(finished.run.path),
        "exit_code": finished.exit_code,
        "verdict": verdict(finished.document) if finished.document else None,
        **finished.outcome.as_dict(),
        "factorial": finished.document,
    }
