"""Whoever reads a run directory refuses files that are not as the run wrote them."""

import json
import shutil

import h5py
import pytest
import small

import mechprobe
from mechprobe.cli.app import run as cli
from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.agreeing import find_judgements
from mechprobe.experiments.analysing import analyse_run
from mechprobe.experiments.judging import find_exchanges
from mechprobe.experiments.reporting import remake_report
from mechprobe.experiments.scoring import score_file

CELL = "cells/llama-s/Q2_K@llama.cpp"


@pytest.fixture
def copied(finished, tmp_path):
    """The run without its arrays, as people pass one on."""
    arrays = shutil.ignore_patterns("*.h5", "*.npz", "*.safetensors")
    return shutil.copytree(finished[1], tmp_path / "copied", ignore=arrays)


def edit(file):
    """Every refusal of one cell undone, as one would by hand; the file stays well formed."""
    text = file.read_text()
    assert "true" in text or "1" in text
    file.write_text(text.replace("true", "false").replace("1", "2"))


EDITED = [
    "spec.yaml",
    f"{CELL}/scores/refusal.jsonl",
    f"{CELL}/scores/multiple_choice.jsonl",
    f"{CELL}/scores/bbq.jsonl",
    f"{CELL}/generations/refusal.jsonl",
    f"{CELL}/cell.json",
    f"{CELL}/probes.json",
    "prompts/llama-s.jsonl",
    "matrix.csv",
    "references.csv",
    "gaps.csv",
    "analysis.json",
]


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_file_goes_into_no_reader(copied, tmp_path, name):
    edit(copied / name)
    for read in (
        mechprobe.open_run,
        analyse_run,
        lambda run: remake_report(run, out=tmp_path / "page"),
        lambda run: find_exchanges([run]),
        lambda run: find_judgements([run]),
    ):
        with pytest.raises(RunDirectoryError) as caught:
            read(copied)
        line = str(caught.value)
        assert line.startswith(f"{copied / name}: damaged or changed")
        assert "run the same command again" in line
    assert not (tmp_path / "page").exists()


def test_the_commands_end_with_2_and_one_line(copied, capsys):
    edit(copied / CELL / "scores" / "refusal.jsonl")
    for command in (["analyze"], ["report"], ["judge", "-j", "rules", "-o", str(copied / "j")]):
        assert cli([command[0], str(copied), *command[1:]]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_single_file_of_a_run_is_compared_too(copied, capsys):
    file = copied / CELL / "generations" / "refusal.jsonl"
    edit(file)
    for read in (lambda: find_exchanges([file]), lambda: score_file(None, file)):
        with pytest.raises(RunDirectoryError, match=r"refusal\.jsonl: damaged or changed"):
            read()
    edit(copied / "matrix.csv")
    edit(copied / "analysis.json")
    out = str(copied.parent / "c.json")
    for command in (
        ["analyze", str(copied / "matrix.csv")],
        ["rtsi", "fit", str(copied / "analysis.json"), "--out", out],
    ):
        assert cli(command) == 2
        assert "damaged or changed" in capsys.readouterr().err


@pytest.mark.parametrize("name", [f"{CELL}/cell.json", f"{CELL}/scores/refusal.jsonl"])
def test_a_missing_file_is_not_taken_for_an_unmeasured_one(copied, name):
    (copied / name).unlink()
    for read in (mechprobe.open_run, analyse_run):
        with pytest.raises(RunDirectoryError, match="missing"):
            read(copied)


def test_a_marker_that_was_damaged_vouches_for_nothing(copied):
    marker = next((copied / ".steps" / "cells").rglob("checkpoint.json"))
    marker.write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"checkpoint\.json: damaged"):
        mechprobe.open_run(copied)


def test_files_edited_after_opening_are_noticed_when_they_are_read(copied):
    run = mechprobe.open_run(copied)
    cell = run.cell("llama-s", "Q2_K@llama.cpp")
    for name in ("cell.json", "probes.json", "probes/entropy.json", "scores/refusal.jsonl"):
        edit(cell.path / name)
    for read in (
        lambda: cell.facts,
        lambda: cell.probes,
        lambda: cell.probe("entropy"),
        cell.scores,
        run.report,
    ):
        with pytest.raises(RunDirectoryError, match="damaged or changed"):
            read()


def test_activations_are_compared_when_they_are_asked_for(finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "whole")
    cell = mechprobe.open_run(copy).cell("llama-s", "Q2_K@llama.cpp")
    assert cell.activations.prompt_sets
    shard = next((cell.path / "probes" / "observation").rglob("*.h5"))
    with h5py.File(shard, "r+") as file:  # with a right checksum
        name = next(iter(file))
        file[name][...] = file[name][...] + 1
    again = mechprobe.open_run(copy).cell("llama-s", "Q2_K@llama.cpp")
    with pytest.raises(RunDirectoryError, match=r"\.h5: damaged or changed"):
        _ = again.activations


def test_a_run_without_its_markers_says_that_nothing_was_checked(copied, tmp_path, capsys):
    shutil.rmtree(copied / ".steps")
    assert "could not be checked" in analyse_run(copied)["summary"][-1]
    assert "could not be checked" in mechprobe.open_run(copied)._repr_html_()
    assert cli(["report", str(copied), "--out", str(tmp_path / "page")]) == 0
    assert "could not be checked" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", "a: &a [*a]", "analysis: 3", "analysis: {strict: []}", "\x00"]
)
def test_a_damaged_spec_is_one_line(copied, text):
    (copied / "spec.yaml").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"spec\.yaml"):
        analyse_run(copied)


@pytest.mark.parametrize("text", ["tasks: []", "tasks: {refusal: 3}", "tasks: {refusal: {}}"])
def test_a_spec_that_lost_its_instrument_reads_by_the_cells(copied, text):
    shutil.rmtree(copied / ".steps")
    (copied / "spec.yaml").write_text(text)
    assert analyse_run(copied)["rows"]


def test_reading_does_not_change_the_run(copied):
    before = {f: f.read_bytes() for f in sorted(copied.rglob("*")) if f.is_file()}
    mechprobe.open_run(copied)
    analyse_run(copied)
    assert {f: f.read_bytes() for f in sorted(copied.rglob("*")) if f.is_file()} == before
    assert json.loads((copied / "analysis.json").read_text())["rows"]


SCORED = f"{CELL}/scores/refusal.jsonl"
MARKER = f".steps/{CELL}/score-refusal.json"


def without_outputs(run):
    marker = run / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"outputs": {}}))


LOST = {
    "of the spec": ("spec.yaml", lambda run: (run / ".steps" / "spec.yaml").unlink()),
    "a marker": (SCORED, lambda run: (run / MARKER).unlink()),
    "all of the cells'": (SCORED, lambda run: shutil.rmtree(run / ".steps" / "cells")),
    "called an error": (
        SCORED,
        lambda run: (run / MARKER).rename((run / MARKER).with_suffix(".error.json")),
    ),
    "of no file": (SCORED, without_outputs),
    "of the tables": ("matrix.csv", lambda run: (run / ".steps" / "tables.json").unlink()),
    "of the analysis": ("analysis.json", lambda run: (run / ".steps" / "analysis.json").unlink()),
    "of the prompts": (
        "prompts/llama-s.jsonl",
        lambda run: next((run / ".steps").glob("prompts/*.json")).unlink(),
    ),
}


@pytest.mark.parametrize("lost", LOST)
def test_a_file_that_no_step_vouches_for_goes_into_no_reader(copied, lost):
    name, lose = LOST[lost]
    edit(copied / name)
    lose(copied)
    for read in (
        mechprobe.open_run,
        analyse_run,
        remake_report,
        lambda run: find_exchanges([run]),
        lambda run: find_judgements([run]),
        lambda run: find_exchanges([run / name]),
    ):
        with pytest.raises(
            RunDirectoryError, match="no finished step of the run vouches"
        ) as caught:
            read(copied)
        assert "run the same command again" in str(caught.value)


def test_files_that_no_step_writes_are_in_nobodys_way(copied):
    """Judgements of one's own, notes, figures, and what a failed step left."""
    (copied / "judgements.jsonl").write_text("{}")
    (copied / "notes.csv").write_text("mine")
    (copied / CELL / "scores" / ".new.jsonl.tmp").write_text("half")
    marker = copied / MARKER
    marker.unlink()
    record = {"key": "", "error": "the server is gone", "writes": [SCORED], "traceback": []}
    marker.with_suffix(".error.json").write_text(json.dumps(record))
    assert mechprobe.open_run(copied).analysis["rows"]


def test_judge_agreement_and_score_say_that_nothing_was_checked(copied, tmp_path, capsys):
    shutil.rmtree(copied / ".steps")
    out = tmp_path / "j.jsonl"
    answers = copied / CELL / "generations" / "refusal.jsonl"
    for command in (
        ["judge", str(copied), "-j", "rules", "-j", "rules:prefix", "-o", str(out)],
        ["judge", str(answers), "-j", "rules", "-o", str(tmp_path / "one.jsonl")],
        ["analyze", str(copied / "matrix.csv")],
    ):
        lost = small.LOST if command[0] == "analyze" else 0
        assert cli(command) == lost, capsys.readouterr().err
        assert "could not be checked" in capsys.readouterr().err
    cli(["agreement", str(copied), str(out)])
    assert "could not be checked" in capsys.readouterr().err
