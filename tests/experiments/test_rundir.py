import errno
import json
import os
import subprocess
import sys

import pytest

from mechprobe import journal
from mechprobe.errors import RunDirectoryError
from mechprobe.experiments import rundir
from mechprobe.experiments.locks import locked, opened
from mechprobe.experiments.rundir import Journal, read_json, read_jsonl, write_jsonl, write_text


def _leftovers(folder):
    return sorted(p.name for p in folder.rglob("*") if p.name.endswith(".tmp"))


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert _leftovers(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_text(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(RunDirectoryError, match=r"b\.txt: the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_characters_that_end_a_line_elsewhere_are_text_in_a_row(tmp_path, mark):
    rows = [{"prompt": f"one{mark}two", "answer": f"I can{mark}not{mark}"}, {"answer": mark}]
    assert read_jsonl(write_jsonl(tmp_path / "rows.jsonl", rows)) == rows
    journal = Journal(tmp_path / "step.journal", "k")
    journal.rewrite([rows[:1]])
    journal.append(rows[1:])
    assert journal.read() == [rows[:1], rows[1:]]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_really_full_device_is_explained():
    with pytest.raises(RunDirectoryError, match="the disk is full"):
        rundir.Journal(rundir.Path("/dev/full"), "k").append([{"x": "y" * 10_000}])


def test_what_a_killed_worker_left_half_written_is_gone_when_the_run_ends(tmp_path):
    with opened(tmp_path / "run", "name: x\n", {}) as run:
        folder = run / ".steps"
        folder.mkdir(exist_ok=True)
        (folder / ".answers.jsonl.k1.tmp").write_text("half")
    assert _leftovers(tmp_path) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "f").write_text("")
    with (
        pytest.raises(RunDirectoryError, match=r"not a directory|file exists"),
        opened(tmp_path / "f" / "run", "name: x\n", {}),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(RunDirectoryError, match="permission denied"),
        opened(tmp_path / "run", "name: x\n", {}),
    ):
        pass


def test_a_directory_belongs_to_one_spec(tmp_path):
    with opened(tmp_path / "run", "name: x\n", {"n": 1}):
        pass
    with opened(tmp_path / "run", "name: x\n", {"n": 2}) as run:
        assert read_json(run / "provenance.json") == {"n": 1}
    with (
        pytest.raises(RunDirectoryError, match="another spec"),
        opened(tmp_path / "run", "name: y\n", {}),
    ):
        pass
    assert (tmp_path / "run" / "spec.yaml").read_text() == "name: x\n"


def test_a_folder_with_other_files_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("hard work")
    with (
        pytest.raises(RunDirectoryError, match="holds files that are not a run"),
        opened(tmp_path, "name: x\n", {}),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_second_process_is_told_who_holds_the_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mechprobe.experiments.locks import opened\n"
        "with opened(Path(sys.argv[1]), 'name: x\\n', {}):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunDirectoryError, match=rf"in use by process {other.pid} on \S+ since"),
            opened(tmp_path / "run", "name: x\n", {}),
        ):
            pass
    finally:
        other.kill()  # the system frees the lock of a killed process
        other.communicate()
    with opened(tmp_path / "run", "name: x\n", {}) as run:
        assert run.path == tmp_path / "run"


def test_locks_of_two_cells_do_not_meet(tmp_path):
    with locked(tmp_path, "a"), locked(tmp_path, "b"):
        assert read_json(tmp_path / ".a.holder.json")["pid"] == os.getpid()


def test_read_json_names_a_damaged_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(RunDirectoryError, match=r"x\.json: damaged \(line 1"):
        read_json(tmp_path / "x.json")
    for damage in ("9" * 5000, "[" * 200_000):
        (tmp_path / "x.json").write_text("[\n" + damage)
        with pytest.raises(RunDirectoryError, match=r"x\.json: damaged \(line 2"):
            read_json(tmp_path / "x.json")
        (tmp_path / "x.jsonl").write_text("{}\n" + damage)
        with pytest.raises(RunDirectoryError, match=r"x\.jsonl: damaged \(line 2"):
            read_jsonl(tmp_path / "x.jsonl")
        (tmp_path / "j").write_text(f"key\n[]\n{damage}\n")
        assert Journal(tmp_path / "j", "key").read() == [[]]
    with pytest.raises(RunDirectoryError, match="no such file"):
        read_json(tmp_path / "y.json")


def test_json_never_holds_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        rundir.dump_json({"x": float("nan")})


def test_journal_drops_torn_lines_and_other_keys(tmp_path):
    journal = Journal(tmp_path / "j", "key-1")
    assert journal.read() == []
    journal.rewrite([])
    journal.append([{"i": 0}, {"i": 1}])
    journal.append([{"i": 2}])
    with journal.path.open("a") as file:
        file.write('[{"i": 3}, {"i"')
    assert journal.read() == [[{"i": 0}, {"i": 1}], [{"i": 2}]]
    assert Journal(journal.path, "key-2").read() == []
    # a torn line that happens to be whole JSON, but without its newline, is torn all the same
    journal.rewrite([[{"i": 0}]])
    with journal.path.open("a") as file:
        file.write(json.dumps([{"i": 1}]))
    assert journal.read() == [[{"i": 0}]]
    journal.discard()
    assert journal.read() == []


def test_a_run_killed_at_birth_opens_again_without_its_torn_files(tmp_path):
    for name in (".run.lock", ".run.holder.json", ".spec.yaml.abc.tmp"):
        (tmp_path / name).write_text("")
    with opened(tmp_path, "name: x\n", {}):
        assert _leftovers(tmp_path) == []
        assert (tmp_path / "spec.yaml").read_text() == "name: x\n"


@pytest.mark.parametrize("lose", [lambda file: file.write_text("name: y\n"), lambda f: f.unlink()])
def test_a_spec_that_was_edited_or_lost_is_put_back_by_its_own_run_alone(tmp_path, lose):
    path = tmp_path / "run"
    with opened(path, "name: x\n", {}):
        pass
    lose(path / "spec.yaml")
    with pytest.raises(RunDirectoryError, match="another spec"), opened(path, "name: y\n", {}):
        pass
    with opened(path, "name: x\n", {}):
        assert (path / "spec.yaml").read_text() == "name: x\n"
