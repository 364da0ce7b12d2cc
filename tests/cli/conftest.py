import os
import subprocess
import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def mechprobe(tmp_path):
    """Run the real command in a process of its own, in an empty folder with an empty cache."""

    def call(*arguments, module="mechprobe", **environment):
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "MECHPROBE_CACHE": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "1",
                "COLUMNS": "100",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def main(tmp_path, monkeypatch, capfd):
    """Run the command in this process: faster, and the same code from `main` on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments):
        from mechprobe.cli import main

        code = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call
