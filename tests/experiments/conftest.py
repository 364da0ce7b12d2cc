import os
import sys
from pathlib import Path

import pytest

from mechprobe.experiments.locks import opened
from mechprobe.experiments.rundir import RunDirectory

sys.path.insert(0, str(Path(__file__).parent))
import small


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "run", "name: test\n", {"version": "0"}) as directory:
        assert isinstance(directory, RunDirectory)
        yield directory


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted small run: its spec, its directory, and what the command printed."""
    home = tmp_path_factory.mktemp("small")
    spec = home / "small.yaml"
    spec.write_text(small.SPEC)
    done = small.run(spec, home / "run")
    assert done.returncode == 0, done.stderr
    assert os.environ["MECHPROBE_CACHE"]
    return spec, home / "run", done
