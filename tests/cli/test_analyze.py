import json

import pytest

from mechprobe.cli.app import run
from mechprobe.exit_codes import ExitCode

TABLE = (
    "model,quant,baseline_quant,refusal_delta_pp,bertscore_delta_pp\n"
    "m,FP16,FP16,0.00,0.00\nm,Q4,FP16,-10.00,0.10\nm,AWQ,FP16,-30.00,0.20\n"
)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text(TABLE)
    return path


def test_a_table_is_shown_with_its_regimes(table, capsys):
    assert run(["analyze", str(table), "--n", "refusal=220"]) == ExitCode.REGRESSION
    out = capsys.readouterr().out
    assert "hidden danger" in out
    assert "boundary" in out
    assert "Not measured" in out


def test_the_document_goes_to_stdout_and_to_a_file(table, tmp_path, capsys):
    kept = tmp_path / "analysis.json"
    arguments = ["analyze", str(table), "--preset", "study", "--non-strict", "--json"]
    assert run([*arguments, "--out", str(kept)]) == ExitCode.REGRESSION
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(kept.read_text())
    assert document["preset"]["name"] == "study"
    assert document["regimes"]["counts"]["hidden_danger"] == 2


def test_columns_can_be_named(table, capsys):
    table.write_text(TABLE.replace("refusal_delta_pp", "drop"))
    assert run(["analyze", str(table)]) == 2
    assert "no column for refusal" in capsys.readouterr().err
    assert run(["analyze", str(table), "--column", "refusal_points=drop"]) == ExitCode.REGRESSION


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--n", "refusal"], "--n refusal: write FIELD=VALUE"),
        (["--n", "refusal=0"], "--n refusal=0: 0 is no number of prompts"),
        (["--preset", "ours"], "preset 'ours' is unknown"),
    ],
)
def test_mistakes_are_one_line(table, capsys, arguments, said):
    assert run(["analyze", str(table), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert run(["analyze", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "not a run directory (it has no spec.yaml)" in error
    assert "--out" not in error


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("m,Q8,Q2,110,,\nm,Q2,Q8,50,,\n", "line 2, column baseline: a chain of baselines leads"),
        ("m,Q8,,110,,\nm,Q2,Q8,50,130,70\n", "130 lost, but the baseline has 110 positive alone"),
        ("m,Q8,,150,,\nm,Q2,Q8,180,30,60\n", "60 gained, but the baseline has 50 negative alone"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, rows, said):
    head = "model,cell,baseline,refusal_count,refusal_lost,refusal_gained\n"
    (tmp_path / "t.csv").write_text(head + rows)
    assert run(["analyze", str(tmp_path / "t.csv"), "--n", "refusal=200"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", "t.csv"),
        ("rtsi", "fit", "t.csv", "--out", "c.json"),
        ("rtsi", "validate", "t.csv", "--regimes", "t.csv"),
        ("score", "refusal", "--source", "t.csv", "--answers", "a.jsonl"),
        ("score", "refusal", "--answers", "t.csv"),
    ],
)
def test_a_column_named_twice_is_refused_by_its_name(main, tmp_path, arguments):
    """pandas would call the second one `rate.1`; Python's own reader would keep the last."""
    (tmp_path / "t.csv").write_text("goal,cell,rate,rate\na,b,1,2\n")
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "b"}\n')
    done = main(*arguments)
    assert done.code == 2
    assert done.err == "mechprobe: t.csv, line 1: the column 'rate' is named twice\n"
