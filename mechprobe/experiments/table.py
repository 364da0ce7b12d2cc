"""The matrix in a terminal, and one line of what it says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich import box
from rich.table import Table
from rich.text import Text

from mechprobe.experiments.running import Finished
from mechprobe.experiments.steps import STATUSES, Status

Row = Mapping[str, str]
NOTHING = "\N{EN DASH}"
BLIND = "*"
"""Behind a probe's number on a checkpoint that lost refusals, where it does not show the loss."""


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    show: Callable[[Row], str]
    width: int
    """From this many terminal columns on."""
    of: str = ""
    """The column of the matrix that it shows; left out where no row has it."""


def percent(text: str, digits: int = 1) -> str:
    """A share as a percentage, without the sign."""
    return f"{100 * float(text):.{digits}f}" if text else NOTHING


def _interval(row: Row, name: str) -> str:
    if not row[f"{name}_rate"]:
        return NOTHING
    low, high = percent(row[f"{name}_low"], 0), percent(row[f"{name}_high"], 0)
    return f"{percent(row[f'{name}_rate'])} [{low}{NOTHING}{high}]"


def _points(row: Row, name: str) -> str:
    value = row[f"{name}_delta_points"]
    if not value:
        return "" if not row["baseline"] else NOTHING
    return signed(float(value))


def signed(points: float) -> str:
    """Points with a sign that reads as one; nothing has no sign."""
    text = f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text[1:] == "0.0" else text


def _fixed(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: f"{float(row[name]):.{digits}f}" if row[name] else NOTHING


def _small(name: str) -> Callable[[Row], str]:
    return lambda row: f"{float(row[name]):.0e}" if row[name] else NOTHING


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: percent(row.get(name, ""))


_ABLATED, _ADDED = "harmful_refusal_ablated", "harmless_refusal_added"
_COMPLIED = "harmful_complied_rate"
_UNCLEAR = "harmful_unclear_rate"
_AMBIGUOUS = "bbq_accuracy_ambiguous_value"
_WRITTEN = "reference_quality_value"
_WRAPPED = "jailbreak_refusal_rate_role_play_value"
_COLUMNS = (
    _Column("cell", lambda r: r["precision"], 0),
    _Column("engine", lambda r: r["engine"], 200),
    _Column("bits", _fixed("bits_per_weight", 2), 0),
    _Column("harmful\nrefused %", lambda r: _interval(r, "harmful_refusal"), 0),
    _Column("Δ", lambda r: _points(r, "harmful_refusal"), 0),
    _Column("complied\n%", _share(_COMPLIED), 180, _COMPLIED),
    _Column("unclear\n%", _share(_UNCLEAR), 90, _UNCLEAR),
    _Column("harmless\nrefused %", lambda r: percent(r["harmless_refusal_rate"]), 0),
    _Column("Δ", lambda r: _points(r, "harmless_refusal"), 170),
    _Column("right\n%", lambda r: percent(r["accuracy_rate"]), 0, "accuracy_rate"),
    _Column("Δ", lambda r: _points(r, "accuracy"), 100, "accuracy_rate"),
    _Column("unknown\nright %", _share(_AMBIGUOUS), 160, _AMBIGUOUS),
    _Column("written\nROUGE-L", _share(_WRITTEN), 120, _WRITTEN),
    _Column("wrapped\nrefused %", _share(_WRAPPED), 210, _WRAPPED),
    _Column("margin\nlost", _fixed("refusal_margin_lost", 2), 0, "refusal_margin_lost"),
    _Column("direction\ncosine", _fixed("direction_cosine", 3), 0, "direction_cosine"),
    _Column("ablated\n%", lambda r: percent(r[_ABLATED]), 144, _ABLATED),
    _Column("added\n%", lambda r: percent(r[_ADDED]), 144, _ADDED),
    _Column("ECE", _fixed("ece", 3), 110, "ece"),
    _Column("neurons\nratio", _fixed("neurons_ratio", 2), 120, "neurons_ratio"),
    _Column("patched\nback", _fixed("patching_returned", 2), 170, "patching_returned"),
    _Column("kernel\ngap KL", _small("kernel_gap_kl"), 130, "kernel_gap_kl"),
)


def _shown(rows: Sequence[Row], width: int) -> list[_Column]:
    return [
        column
        for column in _COLUMNS
        if column.width <= width and (not column.of or any(row.get(column.of) for row in rows))
    ]


def left_out(rows: Sequence[Row]) -> list[str]:
    """Titles of the columns of every width that no row has a value for."""
    return [
        column.title.replace("\n", " ")
        for column in _COLUMNS
        if column.width == 0 and column.of and not any(row.get(column.of) for row in rows)
    ]


def matrix_table(
    rows: Sequence[Row],
    title: str,
    width: int,
    unseen: Mapping[tuple[str, str], Collection[str]] = MappingProxyType({}),
) -> Table:
    """The rows as a table that fits a terminal of this width.

    Args:
        rows: Of one model.
        title: Above it.
        width: In characters.
        unseen: By model and cell that lost refusals, columns of the matrix that do not show it.
    """
    shown = _shown(rows, width)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for i, column in enumerate(shown):
        table.add_column(column.title, justify="left" if i == 0 else "right", no_wrap=True)
    stack = None
    for row in rows:
        if stack not in (None, (row["model"], row["engine"])):
            table.add_section()
        stack = (row["model"], row["engine"])
        blind = unseen.get((row["model"], f"{row['precision']}@{row['engine']}"), ())
        cells = [c.show(row) + (BLIND if c.of and c.of in blind else "") for c in shown]
        if row["status"] == "ok":
            table.add_row(*cells)
        else:
            table.add_row(*cells[:1], *(Text(c, style="dim") for c in cells[1:]), style="red")
    return table


def is_marked(
    rows: Sequence[Row], width: int, unseen: Mapping[tuple[str, str], Collection[str]]
) -> bool:
    """Whether a number that is shown at this width does not show its row's loss."""
    shown = {column.of for column in _shown(rows, width)}
    keys = {(row["model"], f"{row['precision']}@{row['engine']}") for row in rows}
    return any(shown.intersection(unseen.get(key, ())) for key in keys)


def legend(rows: Sequence[Row], width: int) -> str:
    """What the columns shown at this width are, with n and instruments."""
    first = next((row for row in rows if row["status"] == "ok"), None)
    if first is None:
        return ""
    parts = []
    if first["refusal_instrument"]:
        n, m = first["harmful_refusal_n"], first["harmless_refusal_n"]
        parts.append(
            f"refused: {n} harmful and {m} harmless held-out prompts through the native engine, "
            f"read by “{first['refusal_instrument']}”, Wilson 95 %"
        )
    titles = {column.title for column in _shown(rows, width)}
    if "unclear\n%" in titles:
        parts.append(
            f"unclear: neither refuses nor answers, as “{first['answers_instrument']}” says"
        )
    if first["accuracy_n"]:
        parts.append(f"right: {first['accuracy_n']} four-option questions")
    parts.append(f"Δ: points against {_held_against(rows)}")
    if any(row["refusal_margin_lost"] for row in rows):
        parts.append("margin lost: refusal log-odds of the first token, nats")
    if first["direction_layer"]:
        floor = next((r["direction_cosine_floor"] for r in rows if r["direction_cosine_floor"]), "")
        noise = f" (noise floor {float(floor):.3f})" if floor else ""
        parts.append(
            f"direction: dense kernel, layer {first['direction_layer']}, cosine to that "
            f"cell's{noise}"
        )
    if "unknown\nright %" in titles:
        parts.append("unknown right: ambiguous cases answered “nobody knows”")
    if "written\nROUGE-L" in titles:
        parts.append("written: one line of text against the reference, ROUGE-L in %")
    if "wrapped\nrefused %" in titles:
        parts.append("wrapped: harmful requests within a role play")
    if "ECE" in titles and any(row["ece"] for row in rows):
        parts.append("ECE: confidence on the four options")
    if "neurons\nratio" in titles and any(row["neurons_ratio"] for row in rows):
        parts.append("neurons ratio: error of safety dimensions over others of their scale")
    if "patched\nback" in titles and any(row["patching_returned"] for row in rows):
        parts.append("patched back: log-odds returned by the baseline's safety dimensions, nats")
    return "; ".join(parts) + "."


def _held_against(rows: Sequence[Row]) -> str:
    """What the rows are held against, as they themselves say."""
    held = [row for row in rows if row["baseline"]]
    found = dict.fromkeys(row["baseline"].partition("@")[0] for row in held)
    if not found:
        return "a baseline, which no row has"
    same = {row["baseline"].partition("@")[2] == row["engine"] for row in held}
    if same == {True} and set(found) <= {"FP16", "F16", "BF16"}:
        return "the 16-bit cell of the same engine"
    engine = " of the same engine" if same == {True} else " of another engine"
    if len(same) > 1:
        engine = ", in part of another engine"
    return f"{' or '.join(found)}{engine}, as each row's baseline is"


def verdict(rows: Sequence[Row]) -> str:
    """What the matrix says in a line, and which cells it could not hold against their baseline.

    A cell whose refusals were read is compared, whatever else of it failed.
    """
    name = namer(rows)
    moved = [r for r in rows if r["harmful_refusal_delta_points"]]
    failed = [r for r in rows if r["status"] != "ok"]
    lost = [name(r) for r in failed if not r["harmful_refusal_delta_points"]]
    part = [name(r) for r in failed if r["harmful_refusal_delta_points"]]
    alone = [
        name(r)
        for r in rows
        if r["harmful_refusal_rate"] and r["baseline"] and r not in moved and r not in failed
    ]
    said = _worst(moved, rows) if moved else "Nothing was compared with a baseline."
    if lost:
        said += f" Failed, and not compared: {', '.join(lost)}."
    if alone:
        said += f" Their baseline failed: {', '.join(alone)}."
    if part:
        said += f" Failed in part: {', '.join(part)}."
    return said


def warnings(rows: Sequence[Row]) -> list[str]:
    """What loading warned of, a line for the cells it is the same of."""
    name, cells = namer(rows), defaultdict[str, list[str]](list)
    for row in rows:
        if said := row.get("warnings"):
            cells[said].append(name(row))
    return [f"{', '.join(names)}: {said}" for said, names in cells.items()]


def namer(rows: Sequence[Row]) -> Callable[[Row], str]:
    """How a sentence names a row: with its model where there are several."""
    if len({row["model"] for row in rows}) == 1:
        return lambda row: row["precision"]
    return lambda row: f"{row['model']}/{row['precision']}"


def _worst(moved: Sequence[Row], rows: Sequence[Row]) -> str:
    worst = min(moved, key=lambda r: float(r["harmful_refusal_delta_points"]))
    drop = float(worst["harmful_refusal_delta_points"])
    if drop >= 0:
        return "No cell refuses fewer harmful requests than its baseline."
    rate = 100 * float(worst["harmful_refusal_rate"])
    base, _, _ = worst["baseline"].partition("@")  # which may be a reference, in another table
    said = (
        f"{namer(rows)(worst)} refuses {rate:.1f} % of harmful requests, {base} "
        f"{rate - drop:.1f} %: "
        f"{abs(drop):.1f} points lost"
    )
    if worst["accuracy_delta_points"]:
        said += (
            f", while four-option accuracy moves by {signed(float(worst['accuracy_delta_points']))}"
        )
    return f"{said}.{_instead(worst)}"


def _instead(row: Row) -> str:
    """What a cell says where it does not refuse: a lost refusal need not be an answer."""
    if not row.get(_UNCLEAR):
        return ""
    return (
        f" As {row['answers_instrument']} reads its answers to them, {percent(row[_COMPLIED])} % "
        f"comply and {percent(row[_UNCLEAR])} % are unclear."
    )


def reuse(finished: Finished) -> str:
    """What this run did, what it found done, and what failed."""
    outcome, total = finished.outcome, len(finished.outcome.results)
    reused = outcome.count("reused")
    if reused == total:
        return f"Reused all {total} steps of the finished run in {finished.seconds:.1f} s."
    words: dict[Status, str] = {
        "reused": "reused {n}",
        "failed": "{n} failed",
        "skipped": "{n} skipped for want of these",
    }
    counts = {kind: outcome.count(kind) for kind in STATUSES}
    rest = [f", {words[kind].format(n=counts[kind])}" for kind in words if counts[kind]]
    return f"Ran {counts['done']} of {total} steps{''.join(rest)} in {finished.seconds:.0f} s."
