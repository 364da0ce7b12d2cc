import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mechprobe.experiments import table
from mechprobe.experiments.matrix import typed
from mechprobe.experiments.steps import Outcome, Result


def _row(precision, engine, baseline="", refused=194, **more):
    rate = refused / 200
    row = {
        "model": "m",
        "precision": precision,
        "engine": engine,
        "baseline": baseline,
        "status": "ok",
        "bits_per_weight": "4.25",
        "refusal_instrument": "hard",
        "harmful_refusal_rate": f"{rate}",
        "harmful_refusal_low": f"{rate - 0.05}",
        "harmful_refusal_high": f"{min(rate + 0.05, 1)}",
        "harmful_refusal_n": "200",
        "harmful_refusal_delta_points": f"{(refused - 194) / 2}" if baseline else "",
        "answers_instrument": "oracle",
        "harmful_complied_rate": f"{1 - rate - 0.01 if rate < 0.9 else 1 - rate}",
        "harmful_unclear_rate": "0.01" if rate < 0.9 else "0.0",
        "harmless_refusal_rate": "0.015",
        "harmless_refusal_n": "200",
        "harmless_refusal_delta_points": "0.5" if baseline else "",
        "accuracy_rate": "0.905",
        "accuracy_n": "200",
        "accuracy_delta_points": "-0.5" if baseline else "",
        "direction_layer": "2",
        "direction_cosine": "0.9876" if baseline else "",
        "direction_cosine_floor": "0.991" if baseline else "",
        "refusal_margin_lost": "0.731" if baseline else "",
        "ece": "0.012",
        "neurons_ratio": "1.04" if baseline else "",
        "patching_returned": "0.35" if baseline else "",
        "harmful_refusal_ablated": "0.02",
        "harmless_refusal_added": "1.0",
        "kernel_gap_kl": "0.000000231",
    }
    return row | more


ROWS = [
    _row("FP16", "transformers"),
    _row("GPTQ-INT4", "transformers", "FP16@transformers", refused=150),
    _row("F16", "llama.cpp"),
    _row("Q5_K_M", "llama.cpp", "F16@llama.cpp"),
    _row("Q2_K", "llama.cpp", "F16@llama.cpp", refused=5),
]


def _shown(thing, width):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(thing)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 90, 100, 120, 144, 170, 180, 200])
def test_every_row_fits_the_terminal_uncut(width):
    text = _shown(table.matrix_table(ROWS, "m", width), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in ROWS:
        (line,) = [x for x in text.splitlines() if x.strip().startswith(row["precision"] + " ")]
        assert f"{100 * float(row['harmful_refusal_rate']):.1f} [" in line
        assert "0.988" in line if row["baseline"] else "0.988" not in line
    assert "\N{MINUS SIGN}94.5" in text


def test_a_wider_terminal_shows_more():
    texts = [_shown(table.matrix_table(ROWS, "m", w), w) for w in (80, 120, 200)]
    assert "ECE" not in texts[0]
    assert "ECE" in texts[1]
    assert "llama.cpp" in texts[2]


def test_the_closing_line_names_the_worst_cell_and_its_own_baseline():
    assert table.verdict(ROWS) == (
        "Q2_K refuses 2.5 % of harmful requests, F16 97.0 %: 94.5 points lost, while four-option "
        "accuracy moves by \N{MINUS SIGN}0.5. As oracle reads its answers to them, 96.5 % comply "
        "and 1.0 % are unclear."
    )
    without_baselines = [row for row in ROWS if row["baseline"]]  # they were added as references
    assert table.verdict(without_baselines) == table.verdict(ROWS)
    assert table.verdict(ROWS[:1]) == "Nothing was compared with a baseline."
    assert table.verdict([ROWS[2], ROWS[3]]) == (
        "No cell refuses fewer harmful requests than its baseline."
    )


def test_gibberish_is_shown_beside_the_refusals_it_is_not():
    broken = ROWS[-1] | {"harmful_complied_rate": "0.005", "harmful_unclear_rate": "0.97"}
    said = table.verdict([*ROWS[:-1], broken])
    assert said.endswith(
        " As oracle reads its answers to them, 0.5 % comply and 97.0 % are unclear."
    )
    wide = _shown(table.matrix_table([*ROWS[:-1], broken], "m", 180), 180)
    (line,) = [x for x in wide.splitlines() if x.strip().startswith("Q2_K ")]
    assert " 0.5 " in line
    assert " 97.0 " in line
    assert "unclear: neither refuses nor answers, as “oracle” says" in table.legend(ROWS, 120)
    nobody = [
        row | dict.fromkeys(("answers_instrument", "harmful_unclear_rate"), "") for row in ROWS
    ]
    assert "unclear" not in table.verdict(nobody) + table.legend(nobody, 176)
    assert "unclear" not in _shown(table.matrix_table(nobody, "m", 180), 180)


def test_the_closing_line_says_which_cells_failed():
    worst = ROWS[-1]
    assert worst["precision"] == "Q2_K"
    unread = dict.fromkeys(worst, "") | {
        k: worst[k] for k in ("model", "precision", "engine", "baseline")
    }
    unread["status"] = "failed"
    text = table.verdict([*ROWS[:-1], unread])
    assert text.startswith("GPTQ-INT4 refuses 75.0 %")  # no longer the worst one, and it says so
    assert text.endswith(" Failed, and not compared: Q2_K.")
    # where its refusals were read and something else failed, it is still the worst
    part = worst | {"status": "failed"}
    assert table.verdict([*ROWS[:-1], part]) == f"{table.verdict(ROWS)} Failed in part: Q2_K."
    orphan = worst | {"harmful_refusal_delta_points": ""}
    assert table.verdict([*ROWS[:-1], orphan]).endswith(" Their baseline failed: Q2_K.")
    assert table.verdict([unread]) == (
        "Nothing was compared with a baseline. Failed, and not compared: Q2_K."
    )


def test_the_last_line_counts_what_failed():
    def finished(*statuses):
        results = {f"s{i}": Result(status, "") for i, status in enumerate(statuses)}
        return SimpleNamespace(outcome=Outcome(results), seconds=12.4)

    assert table.reuse(finished("reused", "reused")) == (
        "Reused all 2 steps of the finished run in 12.4 s."
    )
    assert table.reuse(finished("done", "done", "reused")) == (
        "Ran 2 of 3 steps, reused 1 in 12 s."
    )
    assert table.reuse(finished("done", "failed", "skipped", "skipped", "reused")) == (
        "Ran 1 of 5 steps, reused 1, 1 failed, 2 skipped for want of these in 12 s."
    )


def test_a_failed_cell_keeps_its_row_and_shows_no_number():
    failed = dict.fromkeys(ROWS[0], "") | {
        "model": "m",
        "precision": "Q8_0",
        "engine": "llama.cpp",
        "baseline": "F16@llama.cpp",
        "status": "failed",
    }
    text = _shown(table.matrix_table([*ROWS, failed], "m", 80), 80)
    (line,) = [x for x in text.splitlines() if x.strip().startswith("Q8_0")]
    assert not any(c.isdigit() for c in line.replace("Q8_0", ""))


def test_the_legend_names_instrument_and_numbers():
    text = table.legend(ROWS, 80)
    assert "ECE" not in text
    assert "ECE" in table.legend(ROWS, 120)
    assert "200 harmful and 200 harmless" in text
    assert "“hard”" in text
    assert "noise floor 0.991" in text


def test_fields_of_the_table_read_back_as_they_were_written():
    assert typed("precision", "Q2_K") == "Q2_K"
    assert typed("harmful_refusal_n", "200") == 200
    assert typed("harmful_refusals_lost", "-3") == -3
    assert typed("harmful_refusal_rate", "0.5") == 0.5
    assert typed("harmful_refusal_rate", "") is None
    assert typed("error", "") == ""


def test_the_legend_says_what_the_rows_are_held_against():
    assert "Δ: points against the 16-bit cell of the same engine" in table.legend(ROWS, 80)
    eight = [
        _row("Q8_0", "llama.cpp"),
        _row("Q2_K", "llama.cpp", "Q8_0@llama.cpp", refused=5),
    ]
    said = table.legend(eight, 80)
    assert "16-bit" not in said
    assert "Δ: points against Q8_0 of the same engine" in said
    crossed = [*eight, _row("GPTQ-INT4", "transformers", "Q8_0@llama.cpp", refused=150)]
    assert "Δ: points against Q8_0, in part of another engine" in table.legend(crossed, 80)
    elsewhere = table.legend([eight[0], crossed[-1]], 80)
    assert "Δ: points against Q8_0 of another engine, as each" in elsewhere
    for full, engine in (("FP32", "transformers"), ("F32", "llama.cpp")):
        rows = [_row(full, engine), _row("x", engine, f"{full}@{engine}", refused=5)]
        assert f"Δ: points against {full} of the same engine, as each" in table.legend(rows, 80)
    mixed = table.legend([*ROWS, eight[1] | {"model": "n"}], 80)
    assert "Δ: points against FP16 or F16 or Q8_0 of the same engine" in mixed


def test_the_closing_line_names_the_model_where_there_are_several():
    other = [row | {"model": "n"} for row in ROWS[:-1]]
    assert table.verdict([*ROWS, *other]).startswith("m/Q2_K refuses 2.5 % of harmful requests")
    failed = other[-1] | {"status": "failed"}
    assert "Failed in part: n/Q5_K_M." in table.verdict([*ROWS, failed])


def test_what_loading_warned_of_is_a_line_a_cell():
    rows = [_row("FP16", "e"), _row("Q2_K", "e", warnings="2 fall-backs"), _row("Q8_0", "e")]
    assert table.warnings(rows) == ["Q2_K: 2 fall-backs"]
    assert typed("warnings", "") == ""


@pytest.mark.parametrize(("width", "marked"), [(80, False), (200, True)])
def test_a_mark_is_explained_only_where_one_is_shown(width, marked):
    rows = [_row("F16", "llama.cpp"), _row("Q4_1", "llama.cpp", "F16@llama.cpp", 3)]
    unseen = {("m", "Q4_1@llama.cpp"): ["neurons_ratio"]}
    rows[1]["neurons_ratio"] = "1.1"
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table.matrix_table(rows, "t", width, unseen))
    assert (table.BLIND in console.file.getvalue()) is marked
    assert table.is_marked(rows, width, unseen) is marked
    assert not table.is_marked(rows, width, {})
