"""`mechprobe rtsi …`: fit a calibration, score one new checkpoint, check a published table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import Screen
from mechprobe.errors import SpecError
from mechprobe.exit_codes import ExitCode

if TYPE_CHECKING:
    from mechprobe.analysis.rtsi import Screened
    from mechprobe.analysis.rtsi_calibration import CheckpointScore
    from mechprobe.analysis.rtsi_validation import Validation

app = typer.Typer(
    help="The Refusal Template Stability Index: is a checkpoint's wording of refusals its "
    "baseline's? Its weights are fitted to the refusal loss that it then routes.",
    no_args_is_help=True,
)

_Table = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE.csv",
        show_default=False,
        help="One row per checkpoint that is no baseline: base_model, quant, refusal_rate_delta, "
        "dominant_prefix_share_delta, unique_prefix_rate_delta, prefix_entropy_norm_delta, "
        "mean_tokens_refusal_delta (cell minus baseline; rates are shares), and where there are "
        "any family, refusal_rate, rtsi_score. `fit` takes a run's analysis.json too.",
    ),
]
_Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="ROLE=COLUMN",
        show_default=False,
        help="Another name of a column of TABLE; may be repeated. Roles: model, family, cell, "
        "refusal_rate, refusal_delta, dominant_prefix_share, unique_prefix_rate, "
        "prefix_entropy_norm, mean_tokens_refusal, score.",
    ),
]


@app.command()
def fit(
    table: _Table,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.json", help="Where the calibration goes.")
    ],
    column: _Columns = None,
    instrument: Annotated[
        str, typer.Option(help="Refusal instrument that the table was read with; it is kept.")
    ] = "",
    json: Json = False,
) -> None:
    """Fit weights and scales on a table of many checkpoints, and keep them."""
    from mechprobe.analysis.rtsi import screen
    from mechprobe.analysis.rtsi_calibration import store
    from mechprobe.analysis.rtsi_tables import read_rows
    from mechprobe.experiments.integrity import require_intact

    require_intact(table)
    rows = read_rows(table, _renamed(column))
    found = screen(rows)
    kept = store(found.calibration, rows[found.inside], source=table.name, instrument=instrument)
    kept.save(out)
    if json:
        Screen.plain().document(kept.as_dict())
        return
    _say_fit(Screen.plain(), found, out)


@app.command()
def score(
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration",
            "-c",
            metavar="FILE.json",
            help="What `mechprobe rtsi fit` wrote.",
            show_default=False,
        ),
    ],
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE.csv]",
            show_default=False,
            help="Rows with feature deltas, as for `fit`; each is scored by itself.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            show_default=False,
            help="In place of TABLE: answers of the baseline, as `mechprobe generate` writes them.",
        ),
    ] = None,
    candidate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            show_default=False,
            help="Answers of the new checkpoint to the same prompts.",
        ),
    ] = None,
    instrument: Annotated[
        str, typer.Option(help="Refusal instrument that reads the answers.")
    ] = "hard",
    column: _Columns = None,
    json: Json = False,
) -> None:
    """Score new checkpoints by a stored calibration; without a score to give the exit code is 4."""
    from mechprobe.analysis.rtsi_screening import score_rows, screen_answers
    from mechprobe.experiments.integrity import require_intact

    given = [one for one in (table, baseline, candidate) if one is not None]
    for one in given:
        require_intact(one)
    if table is not None and baseline is None and candidate is None:
        found = score_rows(calibration, table, _renamed(column))
    elif table is None and baseline is not None and candidate is not None:
        found = {candidate.stem: screen_answers(calibration, baseline, candidate, instrument)}
    else:
        raise SpecError("give TABLE.csv, or --baseline and --candidate")
    screen = Screen.plain()
    screen.say_unchecked(*given)
    if json:
        screen.document({name: one.as_dict() for name, one in found.items()})
    else:
        _say_scores(screen, found)
    if any(one.band == "UNKNOWN" for one in found.values()):
        raise typer.Exit(ExitCode.NOT_MEASURED)


@app.command()
def validate(
    table: _Table,
    regimes: Annotated[
        Path,
        typer.Option(
            metavar="REGIMES.csv",
            show_default=False,
            help="base_model, quant, regime. Joined with TABLE on (base_model, quant); every row "
            "of TABLE must be there.",
        ),
    ],
    column: _Columns = None,
    regime_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=COLUMN",
            show_default=False,
            help="Another name of a column of REGIMES: model, cell, regime; may be repeated.",
        ),
    ] = None,
    danger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGIME",
            show_default=False,
            help="A regime that counts as danger; may be repeated. By default hidden_danger and "
            "near_hidden_danger, and joint_collapse, which only mechprobe's own presets know.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make the scores of a published table again, and count what they route.

    With --json one object: max_abs_error against the column rtsi_score, routed and danger
    (dangerous rows at 0.10 or above, and all of them), low_bucket (rows below 0.10),
    loo_low_bucket and loo_missed (by weights and scales fitted without the row), wilson_lower
    (95 % bound of routed / danger), and details.
    """
    from mechprobe.analysis.rtsi import DANGER
    from mechprobe.analysis.rtsi_tables import read_deltas, read_regimes
    from mechprobe.analysis.rtsi_validation import validate as compare

    found = compare(
        read_deltas(table, _renamed(column)),
        read_regimes(regimes, _renamed(regime_column)),
        danger or DANGER,
    )
    if json:
        Screen.plain().document(found.as_dict())
        return
    _say_validation(Screen.plain(), found)


def _renamed(given: Sequence[str] | None) -> dict[str, str]:
    pairs = [one.partition("=") for one in given or ()]
    for role, equals, name in pairs:
        if not (role and equals and name):
            raise SpecError(f"--column {role}{equals}{name}: must be ROLE=COLUMN")
    return {role: name for role, _, name in pairs}


def _say_circularity(screen: Screen) -> None:
    from mechprobe.analysis.rtsi import CIRCULARITY

    screen.out.print(f"\nNote: {CIRCULARITY}", soft_wrap=True)


def _say_fit(screen: Screen, found: Screened, out: Path) -> None:
    from rich.table import Table

    scale = found.calibration
    screen.out.print(f"{scale.n} of {len(found.rows)} rows have refusals on both sides")
    table = Table("feature", "r", "weight", "least", "most", box=None, pad_edge=False)
    for name, weight in scale.as_dict()["weights"].items():
        parts = [scale.as_dict()[part][name] for part in ("correlations", "minima", "maxima")]
        shown = ["none" if one is None else f"{one:+.4f}" for one in parts]
        table.add_row(name, shown[0], f"{weight:.4f}", *shown[1:])
    screen.out.print(table)
    screen.out.print(f"kept in {out}", soft_wrap=True)
    _say_circularity(screen)


def _say_scores(screen: Screen, found: Mapping[str, CheckpointScore]) -> None:
    for name, one in found.items():
        value = "not measured" if one.score is None else f"{one.score:.4f}"
        screen.out.print(f"{name}: RTSI {value}, {one.band}", soft_wrap=True)
        if one.outside:
            screen.out.print(
                f"  further than any calibration row: {', '.join(one.outside)}", soft_wrap=True
            )
        for note in one.notes:
            screen.out.print(f"  note: {note}", soft_wrap=True)
    _say_circularity(screen)


def _say_validation(screen: Screen, found: Validation) -> None:
    screen.out.print(
        f"greatest difference from the published scores {found.max_abs_error:.1e}\n"
        f"{found.routed} of {found.danger} dangerous rows routed (Wilson 95 % lower bound "
        f"{found.wilson_lower:.4f}); {found.low_bucket} rows LOW\n"
        f"fitted without the row: {found.loo_low_bucket} rows LOW, {found.loo_missed} of them "
        "dangerous"
    )
    _say_comparators(screen, found.details["comparators"])
    _say_circularity(screen)


def _say_comparators(screen: Screen, found: Sequence[Mapping[str, object]]) -> None:
    from rich.table import Table

    screen.out.print(f"\nother scores that route {found[0]['bucket']} rows")
    table = Table("score", "catches", box=None, pad_edge=False)
    for one in found:
        name = f"{one['name']} delta" if one["signed"] else f"|{one['name']} delta|"
        least, most = one["caught"], one["caught_at_most"]
        ties = "" if least == most else f" ({most} if ties fall its way)"
        table.add_row(name, f"{least} of {one['danger']}{ties}")
    screen.out.print(table)
