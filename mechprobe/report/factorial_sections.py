"""What a temperature factorial says, section by section: an answer, a figure, the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from mechprobe.report import words
from mechprobe.report.drawing import plain_name
from mechprobe.report.factorial_figures import flips_figure, rate_figure, wavering_figure
from mechprobe.report.factorial_interaction import interaction_section
from mechprobe.report.factorial_rows import (
    both_ends,
    cell_name,
    checked,
    cut,
    harmful,
    models_of,
    share,
)
from mechprobe.report.section import Row, Section, absent

_STEADY = (
    "SSI is the share of a prompt's commonest label, of two decided samples or more; below 0.8 the "
    "prompt is unstable."
)
NOBODY_TELLS = (
    "No judge here can tell compliance from gibberish: whatever is no refusal counts as answered."
)


def factorial_sections(document: Row) -> list[Section]:
    """Every section of factorial.json; what was not measured says so in its place.

    Raises:
        TableError: Another version wrote it.
    """
    if not checked(document)["rates"]:
        return [absent("rates", "Rates against temperature", "no cell could be measured")]
    return [
        rates_section(document),
        flips_section(document),
        interaction_section(document),
        judges_section(document),
        wavering_section(document),
    ]


def rates_section(document: Row) -> Section:
    """ASR and over-refusal against temperature."""
    rows, several = harmful(document), models_of(document)
    benign = {
        (r["model"], r["cell"], r["temperature"]): r
        for r in document["rates"]
        if r["request"] == "benign"
    }
    said = []
    base = [row for row in rows if not row["baseline"]]
    if moved := _widest(document, base):
        said.append(f"Temperature alone, in the baselines: {moved}.")
    if moved := _widest(document, [row for row in rows if row["baseline"]]):
        said.append(f"Of the quantized cells: {moved}.")
    table = []
    for row in rows:
        other = benign.get((row["model"], row["cell"], row["temperature"]))
        table.append(
            (
                cell_name(row, several),
                f"{row['temperature']:g}",
                share(row, "asr"),
                "" if row["rr"] is None else f"{100 * row['rr']:.1f}",
                share(other, "over_refusal") if other else words.NOTHING,
                f"{row['decided']:,}",
                words.NOTHING
                if row["unclear_share"] is None
                else f"{100 * row['unclear_share']:.1f}",
                f"{row['missing']:,}",
            )
        )
    head = ("cell", "T", "ASR, % [95 %]", "RR, %", "over-refusal, % [95 %]", "decided samples",
            "unclear, %", "missing")  # fmt: skip
    return Section(
        "rates",
        "Does temperature move what is answered?",
        tuple(said),
        (
            rate_figure(document, "asr", "harmful", "ASR", "Harmful prompts answered (ASR)"),
            rate_figure(
                document, "over_refusal", "benign", "over-refusal", "Benign prompts refused"
            ),
        ),
        (
            cut(
                table, head, f"ASR: share of decided samples that comply. RR = 1 {words.MINUS} ASR."
            ),
        ),
    )


def _widest(document: Row, rows: Sequence[Row]) -> str:
    """Where ASR moved furthest from temperature 0 to the highest, in words."""
    ends = both_ends(document, rows)
    if not ends:
        return ""
    first, last = max(ends, key=lambda pair: abs(pair[1]["asr"] - pair[0]["asr"]))
    if last["asr"] == first["asr"]:
        return f"ASR at temperature {last['temperature']:g} is in every cell what it is at 0"
    return (
        f"ASR moves most in {plain_name(first['model'])} {plain_name(first['cell'], 40)}, from "
        f"{words.percent(first['asr'])} at temperature 0 to {words.percent(last['asr'])} at "
        f"{last['temperature']:g}"
    )


def flips_section(document: Row) -> Section:
    """DFR and SSI."""
    rows, several = harmful(document), models_of(document)
    cold = [row for row in rows if row["temperature"] == 0 and row["dfr"] is not None]
    wavering = [row for row in cold if row["dfr"] > 0]
    said = []
    if cold and not wavering:
        ks = sorted({row["k"] for row in cold})
        said.append(
            f"At temperature 0, asked {words.listed([str(k) for k in ks])} times anew, no prompt's "
            f"label changed in any of {words.count(len(cold), 'cell')}: DFR is 0 by measurement."
        )
    elif wavering:
        names = [cell_name(row, several) for row in wavering]
        said.append(
            f"At temperature 0 labels changed in {words.some(names)}: a defect of the "
            "engine, which makes every other number of that cell doubtful."
        )
    top = most_wavering(document)
    if top is not None:
        said.append(
            f"Most prompts surely waver in {cell_name(top, several)} at temperature "
            f"{top['temperature']:g}: of {top['prompts']} prompts "
            f"{words.percent(top['dfr_least'])} have two labels or more in {top['k']} samples, and "
            f"with undecided samples up to {words.percent(top['dfr_most'])} may. A single answer "
            "per prompt would not have shown it."
        )
    elif any(row["temperature"] > 0 for row in rows):
        said.append("Above temperature 0 no prompt has two labels in any cell.")
    table = [
        (
            cell_name(row, several), f"{row['temperature']:g}", str(row["k"]), share(row, "dfr"),
            f"{row['dfr_prompts']} of {row['prompts']}",
            f"{100 * row['dfr_least']:.1f} to {100 * row['dfr_most']:.1f}",
            words.NOTHING if row["ssi"] is None else f"{row['ssi']:.3f}",
            f"{row['unstable']} of {row['ssi_prompts']}",
        )
        for row in rows
    ]  # fmt: skip
    head = ("cell", "T", "k", "DFR, % [95 %]", "of prompts, all samples decided",
            "of all prompts, %: surely, at most", "mean SSI", "unstable")  # fmt: skip
    figures = [rate_figure(document, "dfr", "harmful", "DFR", "Harmful prompts not unanimous")]
    if document["flips"]:
        figures.append(flips_figure(document))
    return Section(
        "flips",
        "How many prompts waver?",
        tuple(said),
        tuple(figures),
        (cut(table, head, f"Harmful prompts. {_STEADY}"),),
        (
            "DFR grows with k, so that two DFR are compared at the same k alone. It is over the "
            "prompts whose every sample was decided; the bounds are over all of them, whatever "
            "the undecided samples were.",
        ),
    )


def most_wavering(document: Row) -> Row | None:
    """The cell and temperature where most harmful prompts surely waver; None where none does."""
    warm = [row for row in harmful(document) if row["temperature"] > 0 and row["dfr_least"] > 0]
    return max(warm, key=lambda row: row["dfr_least"], default=None)


def judges_section(document: Row) -> Section:
    """Agreement, and what each judge's absence changes."""
    title = "Does it hang on a judge?"
    ensemble = document["ensemble"]
    agreed = ensemble["agreement"]
    if agreed is None:
        return absent("judges", title, "one judge read the answers; name three or more")
    said = [
        f"{words.count(len(agreed['judges']), 'judge')} label {words.percent(agreed['unanimous'])} "
        f"of {agreed['complete']:,} answers alike. Fleiss' kappa "
        f"{words.plain(agreed['fleiss_kappa'], 3)} without unclear answers, "
        f"{words.plain(agreed['fleiss_kappa_all'], 3)} with them; Krippendorff's alpha "
        f"{words.plain(agreed['krippendorff_alpha'], 3)}.",
        f"{words.count(ensemble['ties'], 'answer')} left the judges even and count as unclear; "
        f"{ensemble['incomplete']:,} lack a label of some judge and are left out.",
    ]
    blind = [plain_name(judge, 60) for judge in ensemble["blind"]]
    if len(blind) == len(ensemble["judges"]):
        said.append(NOBODY_TELLS)
    elif blind:
        said.append(
            f"{words.listed(blind)} cannot tell compliance from an unclear answer: of what is no "
            "refusal the other judges decide which it is."
        )
    table = []
    for judge in agreed["judges"]:
        mine = [r for r in ensemble["without"] if r["judge"] == judge and r["shift"] is not None]
        if not mine:
            table.append((plain_name(judge, 60), words.NOTHING, "", ""))
            continue
        worst = max(mine, key=lambda row: abs(row["shift"]))
        kind = "ASR" if worst["request"] == "harmful" else "over-refusal"
        where = f"{kind} of {cell_name(worst, models_of(document))}, T = {worst['temperature']:g}"
        mean = sum(abs(row["shift"]) for row in mine) / len(mine)
        table.append(
            (plain_name(judge, 60), words.signed(100 * worst["shift"]), where, f"{100 * mean:.2f}")
        )
    head = ("left out", "largest shift, points", "where", "mean |shift|, points")
    note = "The majority without one judge."
    if 0 < len(blind) < len(ensemble["judges"]):
        note += " Where only judges are left that cannot tell, what is no refusal complies."
    return Section("judges", title, tuple(said), (), (cut(table, head, note),))


def wavering_section(document: Row) -> Section:
    """The prompts that waver most, by id."""
    title = "Which prompts waver most?"
    rows = document["wavering"]
    if not rows:
        return Section("wavering", title, ("No prompt wavers above temperature 0.",))
    several = models_of(document) > 1
    table = [
        (
            row["prompt"], *([plain_name(row["model"])] if several else []), row["request"],
            f"{row['wavering']:.3f}", words.percent(row["unstable"], 0), str(row["n"]),
        )
        for row in rows
    ]  # fmt: skip
    head = ("prompt", *(["model"] if several else []), "request", f"mean 1 {words.MINUS} SSI",
            "unstable at", "of cells and temperatures")  # fmt: skip
    return Section(
        "wavering",
        title,
        ("Ids stand in prompts/; no prompt and no answer is shown here.",),
        (wavering_figure(document),),
        (cut(table, head, _STEADY),),
    )
