"""Ray's token authentication: on by itself where a token lies in the head's home (Ray 2.60)."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip(
    "ray._private.authentication.authentication_token_setup",
    reason="this version of Ray knows no tokens",
)

TOKEN = "a1b2c3d4" * 8
CONNECT = """
import os, sys
from mechprobe.errors import MechprobeError
from mechprobe.experiments.engine_ray import RayEngine
engine = RayEngine(sys.argv[1])
try:
    with engine._cluster():
        print("nodes", len(engine.nodes()))
except MechprobeError as error:
    print(error)
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"} | more


def connect(address: str, home: Path, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address], env=environment(home, **more),
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def home(tmp_path):
    """A home with a token in it."""
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text(TOKEN)
    return tmp_path / "home"


def test_a_token_that_is_missing_is_one_line(tmp_path):
    said = connect("127.0.0.1:1", tmp_path, RAY_AUTH_MODE="token")
    assert said.startswith("ray: no cluster at 127.0.0.1:1: Token authentication is enabled but")
    assert "RAY_AUTH_TOKEN" in said and "ray get-auth-token" in said
    assert "\n" not in said


@pytest.mark.verify
@pytest.mark.parametrize("mode", ["by itself", "disabled"])
def test_the_token_of_this_machine_is_sent(home, tmp_path, mode):
    scratch = Path(tempfile.mkdtemp(prefix="mp-ray-"))  # its sockets allow for 107 characters
    settings = {} if mode == "by itself" else {"RAY_AUTH_MODE": mode}
    options = ["--head", "--port=0", "--num-cpus=1", "--include-dashboard=false"]
    before = {child.pid for child in psutil.process_iter()}
    try:
        started = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), "start", *options,
             f"--temp-dir={scratch}"],
            env=environment(home, **settings), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        address = next(
            word.split("=")[1].strip("'")
            for word in started.stdout.split()
            if word.startswith("--address=")
        )
        assert connect(address, home) == "nodes 1"
        assert connect(address, tmp_path, RAY_AUTH_TOKEN=TOKEN) == "nodes 1"
        if mode == "by itself":
            said = connect(address, tmp_path)
            assert "RAY_AUTH_TOKEN or ~/.ray/auth_token" in said
    finally:
        for process in psutil.process_iter():
            if process.pid not in before and _names(process, scratch):
                process.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def _names(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(str(folder) in part for part in process.cmdline())
    except psutil.Error:
        return False
