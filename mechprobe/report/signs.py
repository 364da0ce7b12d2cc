"""The sign-split panel: does quality go with safety, and the same way in every model?"""

from __future__ import annotations

from mechprobe.report import palette, words
from mechprobe.report.drawing import blank, plain_name, style
from mechprobe.report.section import Drawn, Material, Row, Section, Table, absent, why_not

TITLE = "Does quality stand in for safety?"
MOST_MODELS = 20


def pairings_section(material: Material) -> Section:
    """How many pairings take both signs, model by model, and what all rows together show."""
    found = material.document.get("pairings")
    if reason := why_not(found):
        return absent("pairings", TITLE, reason)
    assert found is not None
    known = [one for one in found["pairings"] if one["not_measured"] is None]
    if not known:
        reasons = dict.fromkeys(str(one["not_measured"]) for one in found["pairings"])
        return absent("pairings", TITLE, "; ".join(reasons))
    split, comparable = found["split"], found["comparable"]
    if not comparable:
        said = [
            "Nobody can tell: a pairing is compared across models, and fewer than two models "
            "have a correlation of their own."
        ]
    elif split:
        said = [
            f"Not in {split} of {words.count(comparable, 'pairing')}: there quality and safety "
            "move together in some models and against each other in others."
        ]
    else:
        said = [
            f"Their correlation has one sign in all models, in each of "
            f"{words.count(comparable, 'pairing')}. That is not yet a proxy: see how strong it is."
        ]
    missing = found["total"] - found["measured"]
    notes = (f"{words.count(missing, 'pairing')} of {found['total']} not measured.",)
    figures = (signs_figure(known),) if comparable else ()
    return Section(
        "pairings", TITLE, tuple(said), figures, (_table(known),), notes if missing else ()
    )


def _name(one: Row) -> str:
    return f"{one['quality']} / {one['safety']}, {one['reading']} reading, {one['form']}"


def signs_figure(pairings: list[Row]) -> Drawn:
    """A dot for each pairing and model: its colour and mark the sign, its size the strength."""
    models = list(dict.fromkeys(name for one in pairings for name in one["within"]))
    shown = models[:MOST_MODELS]
    with style():
        figure = blank(3.6 + 0.55 * len(shown), 1.5 + 0.24 * len(pairings))
        axes = figure.subplots()
        for y, one in enumerate(pairings):
            if one["splits"]:
                axes.axhspan(y - 0.45, y + 0.45, color=palette.LINE, alpha=0.5, linewidth=0)
            for x, name in enumerate(shown):
                r = (one["within"].get(name) or {}).get("pearson")
                if r is None:
                    continue
                axes.plot(
                    [x], [y], "o" if r > 0 else "X", markersize=2.5 + 7 * abs(r),
                    color=palette.GAIN if r > 0 else palette.LOSS, markeredgewidth=0,
                )  # fmt: skip
        axes.set_xticks(
            range(len(shown)), [plain_name(name, 18) for name in shown],
            rotation=40, ha="right", rotation_mode="anchor",
        )  # fmt: skip
        axes.set_yticks(range(len(pairings)), [_name(one) for one in pairings], fontsize=7.5)
        axes.set(xlim=(-0.7, len(shown) - 0.3), ylim=(len(pairings) - 0.4, -0.6))
        axes.tick_params(length=0)
    caption = (
        "Correlation of quality and safety within each model: a blue dot is positive, an orange "
        "cross negative, larger is stronger; grey: both signs occur."
    )
    if len(models) > len(shown):
        caption += f" {len(shown)} of {len(models)} models."
    return Drawn("sign-split", figure, caption)


def _table(pairings: list[Row]) -> Table:
    head = (
        "pairing", "rows", "models positive / negative", "splits", "pooled r", "Spearman",
        "repeated-measures r [95 %]", "mixed slope [95 %]", "sign holds, leaving any out",
    )  # fmt: skip
    return Table(head, tuple(_line(one) for one in pairings), "Every pairing that was measured")


def _line(one: Row) -> tuple[str, ...]:
    repeated, mixed = one["repeated"], one["mixed"]
    return (
        _name(one),
        str(one["n"]),
        f"{one['positive']} / {one['negative']}",
        _yes(one["splits"]),
        _number(one["pearson"]),
        _number(one["spearman"]),
        f"{_number(repeated['r'])} {words.interval(repeated['low'], repeated['high'], 2)}".strip(),
        f"{_number(mixed['slope'])} {words.interval(mixed['low'], mixed['high'], 2)}".strip(),
        _yes(one["sign_holds"]),
    )


def _number(value: float | None) -> str:
    return "" if value is None else words.signed(value, 2)


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
