"""A run directory in a notebook, and its report; on a small real run."""

import json
import shutil
import subprocess
import sys

import pytest

import mechprobe
from mechprobe.errors import RunDirectoryError, SpecError, StoreError
from mechprobe.experiments.reporting import remake_report


@pytest.fixture(scope="module")
def opened(finished):
    return mechprobe.open_run(finished[1])


def test_tables_are_the_files(finished, opened):
    path = finished[1]
    assert len(opened.matrix) == 3
    assert opened.analysis == json.loads((path / "analysis.json").read_text())
    assert set(opened.outcomes["measure"]) >= {"refusal", "harmless_refusal", "accuracy"}
    assert len(opened.references) + len(opened.matrix) == len(opened.cells)
    assert set(opened.gaps["gap"]) == {"kernel", "engine"}
    assert set(opened.rows["regime"]) <= {*opened.analysis["regimes"]["counts"]}
    low = opened.rows.set_index("precision").loc["Q2_K"]
    stored = next(row for row in opened.analysis["rows"] if row["precision"] == "Q2_K")
    assert low["refusal_points"] == stored["deltas"]["refusal"]["points"]


def test_a_cell_gives_probes_scores_and_activations(opened):
    cell = opened.cell("llama-s", "Q2_K@llama.cpp")
    assert cell.facts["precision"] == "Q2_K"
    assert cell.probe("entropy").margin_lost.n == cell.probes["entropy"]["margin_lost"]["n"]
    assert len(cell.scores()) == 80
    last = cell.activations.last("evaluate/harmful", "blocks.2.hook_resid_pre")
    assert last.shape[0] == 6


def test_figures_and_html_are_there(opened):
    assert {"matrix", "separators"} <= set(opened.figures()) | {"separators"}
    html = opened._repr_html_()
    assert "llama-s" in html
    assert "Q2_K@llama.cpp" in html
    assert repr(opened).startswith("<mechprobe run 'small': ")


def test_the_report_of_the_run_holds_no_answer_and_no_prompt(finished):
    path = finished[1]
    page = (path / "report.html").read_text()
    texts = [
        json.loads(line)["text"]
        for file in path.glob("cells/*/*/generations/*.jsonl")
        for line in file.read_text().splitlines()
    ]
    texts += [
        row["text"]
        for file in path.glob("prompts/*.jsonl")
        for row in map(json.loads, file.read_text().splitlines())
        if row.get("text")
    ]
    long = {text.strip() for text in texts if len(text.strip()) > 20}
    assert len(long) > 50
    assert not any(text in page for text in long)
    ids = [row["id"] for row in map(json.loads, _lines(path))]
    assert any(f"<code>{one}</code>" in page for one in ids)


def _lines(path):
    return next(path.glob("cells/*/Q2_K*/scores/refusal.jsonl")).read_text().splitlines()


def test_keys_of_the_environment_are_not_in_the_report(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    page = remake_report(finished[1], out=tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere" / "report.html"
    assert "sk-very-secret" not in page.read_text()


def test_made_anew_it_is_the_same(finished):
    path = finished[1]
    files = [path / "report.html", *sorted((path / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    (path / "figures" / "old.png").write_bytes(b"of an earlier report")
    assert remake_report(path) == path / "report.html"
    assert [file.read_bytes() for file in files] == before
    assert not (path / "figures" / "old.png").exists()


@pytest.fixture
def copied(finished, tmp_path):
    """The run without its heavy parts, to be broken."""
    heavy = shutil.ignore_patterns("*.h5", "*.npz", "*.safetensors")
    return shutil.copytree(finished[1], tmp_path / "copied", ignore=heavy)


def test_what_cannot_be_opened_says_why(copied, tmp_path):
    with pytest.raises(RunDirectoryError, match="no such folder"):
        mechprobe.open_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        mechprobe.open_run(tmp_path / "empty")
    run = mechprobe.open_run(copied)
    with pytest.raises(RunDirectoryError, match=r"no cell llama-s/Q9@llama\.cpp; there are: "):
        run.cell("llama-s", "Q9@llama.cpp")
    with pytest.raises(SpecError, match="no such probe; there are: entropy"):
        run.cell("llama-s", "Q2_K@llama.cpp").probe("entrpy")
    with pytest.raises(RunDirectoryError, match="scored tasks: bbq"):
        run.cell("llama-s", "Q2_K@llama.cpp").scores("jailbreak")
    (copied / "cells" / "llama-s" / "Q2_K@llama.cpp" / "probes" / "entropy.json").unlink()
    with pytest.raises(StoreError, match="no such file"):
        run.cell("llama-s", "Q2_K@llama.cpp").probe("entropy")


def test_an_unfinished_run_is_not_opened(copied):
    (copied / "analysis.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"not finished \(analysis.json is missing"):
        mechprobe.open_run(copied)


def test_a_changed_table_is_noticed(copied):
    table = copied / "matrix.csv"
    table.write_text(table.read_text().replace("Q2_K", "Q9_K"))
    with pytest.raises(RunDirectoryError, match=r"matrix.csv: damaged or changed"):
        mechprobe.open_run(copied)


def test_a_run_without_its_markers_is_opened(copied):
    shutil.rmtree(copied / ".steps")
    assert len(mechprobe.open_run(copied).matrix) == 3


def test_the_command(copied):
    (copied / "report.html").unlink()
    command = [sys.executable, "-m", "mechprobe", "report", str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (copied / "report.html").exists()
    (copied / "analysis.json").unlink()
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
