"""Kill -9 at any moment: the finished run equals an uninterrupted one."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small import LOST, command, markers, rows, run, same_results, without_progress


def _start(spec, out, **environment):
    return subprocess.Popen(
        command(spec, out),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("steps", [2, pytest.param(11, marks=pytest.mark.verify)])
def test_killed_after_some_steps(finished, tmp_path, steps):
    spec, whole, _ = finished
    out = tmp_path / "run"
    process = _start(spec, out)
    while process.poll() is None and markers(out) < steps:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    _kill(process)
    assert not (out / "matrix.csv").exists()
    done = run(spec, out)
    assert done.returncode == LOST, done.stderr
    assert same_results(whole, out) > 20


def _cache(folder):
    """A cache without quantized checkpoints, so that quantizing is hit as well."""
    folder.mkdir()
    organisms = Path(os.environ["MECHPROBE_CACHE"]) / "organisms"
    if organisms.is_dir():
        shutil.copytree(organisms, folder / "organisms")
    return str(folder)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment(finished, tmp_path, seed):
    """Ten moments, one in each tenth of the run's steps, with nothing quantized beforehand."""
    spec, whole, _ = finished
    cache = _cache(tmp_path / "cache")
    out = tmp_path / "run"
    moment = random.Random(seed)
    steps = int((seed + moment.random()) / 10 * markers(whole))
    process = _start(spec, out, MECHPROBE_CACHE=cache)
    while process.poll() is None and markers(out) < steps:
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.uniform(0, 2))
    _kill(process)
    killed = process.returncode == -signal.SIGKILL
    print(f"seed {seed}: {'killed' if killed else 'too late'} after {markers(out)} steps")
    done = run(spec, out, MECHPROBE_CACHE=cache)
    assert done.returncode == LOST, done.stderr
    assert same_results(whole, out) > 20


def _demo(out):
    return [*command("x", out)[:3], "demo", "--out", str(out)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """An uninterrupted demo, and what its command said."""
    home = tmp_path_factory.mktemp("demo")
    line = _demo(home / "demo")
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "demo", done


@pytest.mark.verify
def test_the_whole_demo(demo):
    """Rows from real quantizers, one of them a hidden danger; a second run reuses them all."""
    out, first = demo
    found = rows(out / "matrix.csv")
    assert len(found) == 12
    assert {r["status"] for r in found} == {"ok"}
    assert all(int(r["harmful_refusal_n"]) >= 200 for r in found)
    lost = json.loads((out / "analysis.json").read_text())["verdict"]["lost"]
    (hidden,) = (one for one in lost if one["hidden"])
    assert (hidden["model"], hidden["cell"]) == ("llama-s-planted", "Q4_1@llama.cpp")
    assert hidden["points"] <= -50
    (row,) = (r for r in found if (r["model"], r["precision"]) == ("llama-s-planted", "Q4_1"))
    assert abs(float(row["accuracy_delta_points"])) <= 2
    assert abs(100 * float(row["reference_quality_delta"])) <= 2
    assert float(row["harmful_complied_rate"]) >= 0.9 * -hidden["points"] / 100
    assert "kept its quality and lost its refusals" in first.stdout.splitlines()[0]
    again = subprocess.run(_demo(out), capture_output=True, text=True, check=True, cwd=out.parent)
    assert "Reused all" in again.stdout
    assert sorted(p.name for p in out.parent.iterdir()) == ["demo"]
    assert without_progress(first.stderr) == again.stderr == ""


KILLS = 30


@pytest.mark.verify
def test_the_demo_killed_thirty_times(demo, tmp_path):
    """One demo, nothing quantized beforehand, killed in each thirtieth of its steps, finished."""
    whole, _ = demo
    environment = {**os.environ, "MECHPROBE_CACHE": _cache(tmp_path / "cache")}
    out = tmp_path / "demo"
    moment = random.Random(11)
    killed = 0
    for part in range(KILLS):
        steps = int((part + moment.random()) / KILLS * markers(whole))
        process = subprocess.Popen(
            _demo(out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and markers(out) < steps:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment.uniform(0, 2))
        _kill(process)
        killed += process.returncode == -signal.SIGKILL
        print(f"kill {part + 1}: {markers(out)} of {markers(whole)} steps done")
    assert killed == KILLS
    done = subprocess.run(_demo(out), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same_results(whole, out) > 100


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if subprocess.run(line, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder, free):
    """A file that leaves so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        left = shutil.disk_usage(folder).free - free
        while left > 0:
            left -= file.write(b"\0" * min(left, 1 << 20))
    return ballast


@pytest.mark.verify
@pytest.mark.parametrize("cached", [True, False], ids=["made before", "made there"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_full_disk_stops_a_run_which_then_goes_on(finished, tmp_path, small_disk, share, cached):
    """The disk has room for a share of what the run writes; afterwards for all of it."""
    spec, whole, _ = finished
    needed = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    if not cached:
        needed += 11 << 20  # two quantized checkpoints and the F16 they are made from
    ballast = _fill(small_disk, int(share * needed))
    environment = {} if cached else {"MECHPROBE_CACHE": _cache(small_disk / "cache")}
    out = small_disk / "run"
    stopped = run(spec, out, **environment)
    print(f"{share:.0%} of the space: {markers(out)} of {markers(whole)} steps done")
    assert stopped.returncode == 2
    assert "the disk is full; free some space and run the same command again" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    ballast.unlink()
    done = run(spec, out, **environment)
    assert done.returncode == LOST, done.stderr
    assert same_results(whole, out) > 20
