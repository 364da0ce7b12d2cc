"""Kill -9 at any moment: the finished run equals an uninterrupted one."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from small import command, markers, run, same_results


def _start(spec, out, **environment):
    return subprocess.Popen(
        command(spec, out),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("steps", [2, 11])
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
    assert done.returncode == 0, done.stderr
    assert same_results(whole, out) > 20


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment(finished, tmp_path, seed):
    """With an empty cache, so that quantizing is hit as well."""
    spec, whole, _ = finished
    cache = tmp_path / "cache"
    cache.mkdir()
    organisms = os.path.join(os.environ["MECHPROBE_CACHE"], "organisms")  # noqa: PTH118
    if os.path.isdir(organisms):  # noqa: PTH112
        shutil.copytree(organisms, cache / "organisms")
    begun = time.monotonic()
    first = run(spec, tmp_path / "timing", MECHPROBE_CACHE=str(cache))
    assert first.returncode == 0
    wall = time.monotonic() - begun
    shutil.rmtree(cache / "quantized")
    out = tmp_path / "run"
    moments = random.Random(seed)
    kills = 0
    for _ in range(2):
        process = _start(spec, out, MECHPROBE_CACHE=str(cache))
        try:
            process.wait(moments.uniform(0.02, 0.95) * wall)
        except subprocess.TimeoutExpired:
            _kill(process)
            kills += 1
    assert kills
    done = run(spec, out, MECHPROBE_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert same_results(whole, out) > 20


@pytest.mark.verify
def test_the_whole_demo(tmp_path):
    """Ten rows from real quantizers; a second run, and one elsewhere, reuse what they can."""
    from small import rows

    out = tmp_path / "demo"
    line = [*command("x", out)[:3], "demo", "--out", str(out)]
    first = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    found = rows(out / "matrix.csv")
    assert len(found) == 10
    assert {r["status"] for r in found} == {"ok"}
    assert all(int(r["harmful_refusal_n"]) >= 200 for r in found)
    again = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Reused all" in again.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo"]
    assert first.stderr == again.stderr == ""
