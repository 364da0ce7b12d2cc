"""Several jobs in one run directory, and who is told to wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from small import LOST, SPEC, command, run, same_results, without_progress
from toy import Silent, step

from mechprobe.errors import RunDirectoryError, SpecError
from mechprobe.experiments.engine_local import LocalEngine, ShardEngine
from mechprobe.experiments.locks import opened, try_locked
from mechprobe.experiments.running import choose_engine, parse_shard
from mechprobe.experiments.steps import shard


def cells(names):
    base = [step("prompts", "p"), step("cells/base/one", "b", needs=("prompts",), cell="base")]
    return base + [
        step(f"cells/{n}/one", n, needs=("prompts", "cells/base/one"), cell=n) for n in names
    ]


def test_a_cell_that_another_process_holds_is_left_for_later(tmp_path):
    toy.RUNS.clear()
    steps = cells("xyz")
    with opened(tmp_path / "r", "name: t\n", {}, (0, 2)) as run:
        holder = try_locked(run.path, "cell-x")
        assert holder.__enter__()

        class Watch(Silent):
            def finished(self, step, result):
                super().finished(step, result)
                if step.name == "cells/z/one":
                    holder.__exit__(None, None, None)

        outcome = ShardEngine().run(steps, run, Watch())
    assert outcome.count("done") == len(steps)
    assert toy.RUNS == ["prompts", "cells/base/one", "cells/y/one", "cells/z/one", "cells/x/one"]


def test_shards_share_a_directory_and_a_whole_run_has_it_alone(tmp_path):
    path = tmp_path / "r"
    with opened(path, "name: t\n", {}, (0, 2)) as first:
        with opened(path, "name: t\n", {}, (1, 2)):
            pass
        with (
            pytest.raises(RunDirectoryError, match=r"in use by shard-1-of-2, process \d+ on"),
            opened(path, "name: t\n", {}),
        ):
            pass
        with (
            pytest.raises(RunDirectoryError, match="in use by shard-1-of-2"),
            opened(path, "name: t\n", {}, (0, 2)),
        ):
            pass
        with (
            pytest.raises(RunDirectoryError, match="belongs to another spec"),
            opened(path, "name: u\n", {}, (1, 2)),
        ):
            pass
        assert first.path == path
    with (
        opened(path, "name: t\n", {}),
        pytest.raises(RunDirectoryError, match="in use by process"),
        opened(path, "name: t\n", {}, (1, 2)),
    ):
        pass


def test_a_shard_does_what_falls_to_it_and_the_whole_run_the_rest(tmp_path):
    steps = [*cells("xyz"), step("table", action="report", after=("cells/x/one",))]
    for index in range(2):
        with opened(tmp_path / "r", "name: t\n", {}, (index, 2)) as run:
            ShardEngine().run(shard(steps, index, 2), run, Silent())
    toy.RUNS.clear()
    with opened(tmp_path / "r", "name: t\n", {}) as run:
        LocalEngine().run(steps, run, Silent())
    assert toy.RUNS == ["table"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_a_shard_is_one_of_so_many(text):
    with pytest.raises(SpecError, match="give I/N"):
        parse_shard(text)


def test_shards_count_from_one():
    assert parse_shard(None) is None
    assert [parse_shard(text) for text in ("1/1", "2/3")] == [(0, 1), (1, 3)]


@pytest.mark.parametrize(
    ("engine", "address", "part", "said"),
    [
        ("dask", None, None, "--engine dask: there are local, ray"),
        ("local", "a:1", None, "--address is of a Ray cluster"),
        ("ray", None, (0, 2), "--shard is for job arrays"),
    ],
)
def test_engines_that_do_not_go_together_are_refused(engine, address, part, said):
    with pytest.raises(SpecError, match=said):
        choose_engine(engine, address, part)


def _job(spec, out, *more):
    return subprocess.Popen(
        [*command(spec, out), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_jobs_at_once_and_then_the_tables(finished, tmp_path):
    """Both shards of a real matrix in one directory at the same time."""
    spec, whole, _ = finished
    out = tmp_path / "run"
    jobs = [_job(spec, out, "--shard", f"{i}/2") for i in (1, 2)]
    for job in jobs:
        _, err = job.communicate()
        assert (job.returncode, without_progress(err)) == (0, "")
    assert not (out / "matrix.csv").exists()
    done = run(spec, out)
    assert done.returncode == LOST, done.stderr
    assert same_results(whole, out) > 20


def test_the_second_of_two_runs_says_who_has_the_directory(tmp_path):
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC)
    hold = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from mechprobe.experiments.locks import opened\n"
        "from mechprobe.experiments.spec import canonical\n"
        "from mechprobe.experiments.spec_file import load_spec\n"
        "with opened(Path(sys.argv[2]), canonical(load_spec(sys.argv[3])), {}):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    line = [sys.executable, "-c", hold, str(Path(__file__).parent), str(tmp_path / "r"), str(spec)]
    first = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        second = run(spec, tmp_path / "r")
        assert second.returncode == 2
        assert f"in use by process {first.pid} on " in second.stderr
    finally:
        first.kill()
        first.wait()
