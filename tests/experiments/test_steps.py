import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.engine_local import LocalEngine
from mechprobe.experiments.locks import opened
from mechprobe.experiments.rundir import read_json
from mechprobe.experiments.steps import Result, shard, step_key

sys.path.insert(0, str(Path(__file__).parent))
import toy
from toy import Silent, step


@pytest.fixture(autouse=True)
def _forget():
    toy.RUNS.clear()
    toy.TROUBLE.clear()


def go(steps, run):
    toy.RUNS.clear()
    return LocalEngine().run(steps, run, Silent())


def two_cells(a="a"):
    return [
        step("prompts", "p"),
        step("cells/a/one", a, needs=("prompts",), cell="a"),
        step("cells/a/two", "2", needs=("cells/a/one",), cell="a"),
        step("cells/b/one", "b", needs=("prompts",), cell="b"),
        step("cells/b/two", "2", needs=("cells/b/one",), cell="b"),
        step("table", action="report", after=("cells/a/two", "cells/b/two")),
    ]


def test_everything_runs_once_and_then_is_reused(run):
    outcome = go(two_cells(), run)
    assert [r.status for r in outcome.results.values()] == ["done"] * 6
    assert (run / "cells/a/two.txt").read_text() == "p;a;2;"
    outcome = go(two_cells(), run)
    assert outcome.count("reused") == 6
    assert toy.RUNS == []


def test_a_changed_input_runs_what_depends_on_it_and_nothing_else(run):
    go(two_cells(), run)
    go(two_cells(a="A"), run)
    assert toy.RUNS == ["cells/a/one", "cells/a/two", "table"]
    assert (run / "cells/a/two.txt").read_text() == "p;A;2;"
    assert (run / "cells/b/two.txt").read_text() == "p;b;2;"


def test_times_of_files_mean_nothing_and_contents_everything(run):
    go(two_cells(), run)
    os.utime(run / "cells/a/one.txt", (0, 0))
    go(two_cells(), run)
    assert toy.RUNS == []
    (run / "cells/a/one.txt").write_text("p;X;")  # the same length
    go(two_cells(), run)
    assert toy.RUNS == ["cells/a/one"]
    (run / "prompts.txt").unlink()
    go(two_cells(), run)
    assert toy.RUNS == ["prompts"]


def test_a_raised_version_runs_the_step_again(run):
    go([step("s")], run)
    go([step("s", version=2)], run)
    assert toy.RUNS == ["s"]


@pytest.mark.parametrize("garble", ["", "{", "[]", '{"key": 1}', '{"key": null, "outputs": 3}'])
def test_a_garbled_marker_is_no_marker(run, garble):
    go([step("s")], run)
    run.marker("s").write_text(garble)
    go([step("s")], run)
    assert toy.RUNS == ["s"]


@pytest.mark.parametrize("broken", [s.name for s in two_cells()])
@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_at_any_step_completes_to_the_same_files(tmp_path, broken, trouble):
    def files(folder):
        return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.txt")}

    with opened(tmp_path / "whole", "name: t\n", {}) as run:
        go(two_cells(), run)
    toy.TROUBLE[broken] = trouble
    with opened(tmp_path / "broken", "name: t\n", {}) as run, pytest.raises(type(trouble)):
        go(two_cells(), run)
    toy.TROUBLE.clear()
    with opened(tmp_path / "broken", "name: t\n", {}) as run:
        go(two_cells(), run)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_failing_cell_is_recorded_and_the_others_go_on(run):
    toy.TROUBLE["cells/a/one"] = ValueError("bad\nworse")
    outcome = go(two_cells(), run)
    statuses = {name: r.status for name, r in outcome.results.items()}
    assert statuses == {
        "prompts": "done",
        "cells/a/one": "failed",
        "cells/a/two": "skipped",
        "cells/b/one": "done",
        "cells/b/two": "done",
        "table": "done",
    }
    assert outcome.failures == ("cells/a/one",)
    record = read_json(run.failure("cells/a/one"))
    assert record["error"] == "ValueError: bad"
    assert "raise TROUBLE" in "\n".join(record["traceback"])
    assert (run / "table.txt").read_text() == (
        "cells/a/two: skipped ValueError: bad\ncells/b/two: ok"
    )
    go(two_cells(), run)  # the failed step is tried again; its report has not changed
    assert toy.RUNS == ["cells/a/one"]
    toy.TROUBLE.clear()
    outcome = go(two_cells(), run)
    assert toy.RUNS == ["cells/a/one", "cells/a/two", "table"]
    assert outcome.failures == ()
    assert not run.failure("cells/a/one").exists()


def test_a_users_error_is_recorded_as_one_line(run):
    outcome = go([step("s", action="refuse")], run)
    assert outcome.results["s"] == Result(
        "failed", outcome.results["s"].key, "model.gguf: truncated; fetch it again"
    )
    assert read_json(run.failure("s"))["traceback"] == []


def test_a_full_disk_stops_the_run(run):
    toy.TROUBLE["s"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunDirectoryError, match="the disk is full"):
        go([step("s")], run)
    toy.TROUBLE.clear()
    assert go([step("s")], run).count("done") == 1


def test_a_failed_rerun_leaves_no_marker_of_the_old_result(run):
    go([step("s", "old")], run)
    toy.TROUBLE["s"] = ValueError("no")
    go([step("s", "new")], run)
    toy.TROUBLE.clear()
    go([step("s", "old")], run)
    assert toy.RUNS == ["s"]


def test_keys_depend_on_what_a_step_reports_not_on_how_it_got_there():
    first = {"a": Result("done", "k")}
    again = {"a": Result("reused", "k")}
    failed = {"a": Result("failed", "k", "why")}
    table = step("t", after=("a",))
    assert step_key(table, first) == step_key(table, again) != step_key(table, failed)


def test_a_plan_must_name_what_it_depends_on(run):
    with pytest.raises(AssertionError, match="do not come before"):
        go([step("a", needs=("b",)), step("b")], run)


def test_shards_cover_every_cell_once_and_take_what_they_need():
    steps = two_cells()
    parts = [[s.name for s in shard(steps, i, 2)] for i in range(2)]
    assert parts == [
        ["prompts", "cells/a/one", "cells/a/two"],
        ["prompts", "cells/b/one", "cells/b/two"],
    ]
    assert shard(steps, 0, 3) == []


@pytest.mark.parametrize("at", [0, 1, 2])
def test_kill_nine_between_batches_loses_no_finished_batch(tmp_path, at):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from toy import Silent, Step\n"
        "from mechprobe.experiments.engine_local import LocalEngine\n"
        "from mechprobe.experiments.locks import opened\n"
        "step = Step('s', 'toy:batches', {'kill': int(sys.argv[3])}, ('s.txt', 'pids.txt'))\n"
        "with opened(Path(sys.argv[2]), 'name: t\\n', {}) as run:\n"
        "    LocalEngine().run([step], run, Silent())\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(Path(toy.__file__).parent),
        str(tmp_path / "r"),
        str(at),
    ]
    killed = subprocess.run(command, env={**os.environ, "KILL": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "r" / "s.txt").exists()
    subprocess.run(command, check=True)
    assert (tmp_path / "r" / "s.txt").read_text() == "0,1,2"
    # two processes wrote the batches, unless the first one finished them all
    assert (tmp_path / "r" / "pids.txt").read_text() == ("1" if at == 2 else "2")
