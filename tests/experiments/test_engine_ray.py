"""A real cluster of two nodes on this machine: the same results as in one process."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import toy
from small import same_results
from toy import Silent, step

pytest.importorskip("ray", reason="the extra `ray` is not installed")
import ray
from ray.cluster_utils import Cluster

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.engine_local import LocalEngine
from mechprobe.experiments.engine_ray import RayEngine
from mechprobe.experiments.locks import opened
from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.running import run_spec
from mechprobe.experiments.spec_file import load_spec, parse_spec

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, whose workers find the toy steps."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's workers are polite (nice 15) and would starve beside other work on this machine
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, path]))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


def matrix():
    cells = [
        part
        for name in "abc"
        for part in (
            step(f"cells/{name}/one", name, needs=("prompts",), cell=name),
            step(f"cells/{name}/two", "2", needs=(f"cells/{name}/one",), cell=name),
            step(f"cells/{name}/cell", "s", "report", after=(f"cells/{name}/two",), cell=name),
        )
    ]
    held = step("cells/d/one", "d", needs=("prompts", "cells/a/two"), cell="d")
    last = step("table", action="report", after=("cells/a/cell", "cells/d/one"))
    return [step("prompts", "p"), *cells, held, last]


def files(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.txt"))}


@pytest.mark.parametrize("shared", [True, False])
def test_cells_run_on_the_cluster_and_their_files_come_back(cluster, tmp_path, shared):
    with opened(tmp_path / "here", "name: t\n", {}) as run:
        LocalEngine().run(matrix(), run, Silent())
    with opened(tmp_path / "there", "name: t\n", {}) as run:
        engine = RayEngine(shared=shared)
        outcome = engine.run(matrix(), run, Silent())
        assert outcome.count("done") == len(matrix())
        toy.RUNS.clear()
        # keys and markers are the same: either engine finds the run finished
        assert engine.run(matrix(), run, Silent()).count("reused") == len(matrix())
        assert LocalEngine().run(matrix(), run, Silent()).count("reused") == len(matrix())
        assert toy.RUNS == []
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert not list((tmp_path / "there").rglob("*.tmp"))
    assert not (tmp_path / "there" / ".steps" / ".incoming").exists()


@pytest.mark.parametrize("shared", [True, False])
def test_a_failing_cell_is_recorded_and_the_others_go_on(cluster, tmp_path, shared):
    steps = matrix()
    steps[1] = step("cells/a/one", action="refuse", needs=("prompts",), cell="a")
    with opened(tmp_path / "run", "name: t\n", {}) as run:
        outcome = RayEngine(shared=shared).run(steps, run, Silent())
        assert outcome.failures == ("cells/a/one",)
        said = "model.gguf: truncated; fetch it again"
        assert outcome.results["cells/a/one"].error == said
        assert outcome.results["cells/d/one"].status == "skipped"
        assert outcome.count("done") == len(steps) - 3
        assert said in run.failure("cells/a/one").read_text()
        assert said in (run / "table.txt").read_text()


class Killer(Silent):
    """Kills the worker of a step as soon as it starts, so many times."""

    def __init__(self, name, times):
        super().__init__()
        self.name, self.times, self.killed = name, times, 0

    def started(self, step):
        super().started(step)
        if step.name == self.name and self.killed < self.times:
            os.kill(int(wait_for(self.pid).read_text()), signal.SIGKILL)
            self.pid.unlink()
            self.killed += 1


def wait_for(path):
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.verify), False])
def test_a_killed_worker_is_survived(cluster, tmp_path, shared):
    pid = tmp_path / "pid"
    slow = step("cells/a/three", str(pid), "linger", needs=("cells/a/two",), cell="a")
    steps = [*matrix()[:3], slow]
    killer = Killer("cells/a/three", 1)
    killer.pid = pid
    with opened(tmp_path / "run", "name: t\n", {}) as run:
        engine = RayEngine(shared=shared)
        outcome = engine.run(steps, run, killer)
        assert (engine.lost, killer.killed) == (1, 1)
        assert outcome.count("done") == 4
        # what was finished before the kill was not run again
        assert [name for kind, name in killer.events if kind == "started"] == [
            "prompts",
            "cells/a/one",
            "cells/a/two",
            *["cells/a/three"] * 2,
        ]
        assert (run / "cells/a/three.txt").read_text() == "p;a;2;"


@pytest.mark.verify
def test_a_cell_that_kills_every_worker_fails_alone(cluster, tmp_path):
    pid = tmp_path / "pid"
    slow = step("cells/a/three", str(pid), "linger", needs=("cells/a/two",), cell="a")
    steps = [*matrix()[:3], slow, matrix()[4]]
    killer = Killer("cells/a/three", 9)
    killer.pid = pid
    with opened(tmp_path / "run", "name: t\n", {}) as run:
        outcome = RayEngine(retries=1).run(steps, run, killer)
    assert outcome.failures == ("cells/a/three",)
    assert "lost 2 workers" in outcome.results["cells/a/three"].error
    assert outcome.results["cells/b/one"].status == "done"


def test_what_fits_on_no_node_is_said_at_once(cluster, tmp_path):
    large = step("cells/a/one", cell="a", memory=1 << 50)
    gpus = step("cells/b/one", cell="b", gpus=64)
    with opened(tmp_path / "run", "name: t\n", {}) as run:
        outcome = RayEngine().run([large, gpus], run, Silent())
    assert "needs 1048577.0 GiB of memory" in outcome.results["cells/a/one"].error
    assert "64 GPUs" in outcome.results["cells/b/one"].error


def test_a_full_disk_of_a_node_stops_the_run(cluster, tmp_path):
    with (
        opened(tmp_path / "run", "name: t\n", {}) as run,
        pytest.raises(RunDirectoryError, match="the disk is full"),
    ):
        RayEngine(shared=False).run([step("cells/a/s", "x", "fill", cell="a")], run, Silent())


SPEC = """
name: tiny
models:
  - name: llama-s
    family: organism
    source: organism:llama-s
    cells:
      - {precision: F16, quantize: F16}
      - {precision: Q2_K, quantize: Q2_K}
prompts: {source: organism}
tasks:
  refusal: {prompts: 8, max_new_tokens: 8}
  multiple_choice: {questions: 8}
probes: {run: [entropy, calibration], fit: 4, select: 4, evaluate: 4, causal: false}
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The organism's matrix in one process."""
    home = tmp_path_factory.mktemp("alone")
    return run_organism(SPEC, home / "run", LocalEngine())


def run_organism(text, out, engine):
    finished = run_spec(
        parse_spec(text, "s"), out, lambda *_: contextlib.nullcontext(NoDisplay()), engine
    )
    assert finished.whole, finished.outcome
    return out


def test_an_organism_measured_without_a_shared_file_system(cluster, alone, tmp_path):
    there = run_organism(SPEC, tmp_path / "run", RayEngine(shared=False))
    assert same_results(alone, there) > 20


@pytest.mark.verify
@pytest.mark.parametrize("shared", [True, False])
def test_the_demo_on_two_nodes_with_a_worker_killed(cluster, tmp_path, shared):
    spec = load_spec("demo")

    class Once(NoDisplay):
        killed = False

        def started(self, step):
            if step.name.endswith("Q6_K@llama.cpp/generate-jailbreak") and not self.killed:
                self.killed = True
                worker_of(step.cell).kill()

    watch = Once()
    there = tmp_path / "ray"
    engine = RayEngine(shared=shared)
    done = run_spec(spec, there, lambda *_: contextlib.nullcontext(watch), engine)
    assert (done.whole, engine.lost) == (True, 1)
    here = tmp_path / "local"
    run_spec(spec, here, lambda *_: contextlib.nullcontext(NoDisplay()), LocalEngine())
    assert same_results(here, there) > 100


def worker_of(cell):
    """The process that has a cell: Ray writes the name of the task into its title."""
    title = f"ray::mechprobe {cell}"
    found = psutil.process_iter(["cmdline"])
    return next(p for p in found if title in " ".join(p.info["cmdline"] or ()))
