import os
import pickle
import sys
from pathlib import Path

import pytest
from filelock import FileLock

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
    """An uninterrupted small run: its spec, its directory, and what the command printed.

    Made once for all workers of a test run, which only read it.
    """
    assert os.environ["MECHPROBE_CACHE"]
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent
    home /= "small"
    spec, said = home / "small.yaml", home / "said.pickle"
    with FileLock(f"{home}.lock"):
        if not said.exists():
            home.mkdir(exist_ok=True)  # by a worker whose run failed
            spec.write_text(small.SPEC)
            done = small.run(spec, home / "run")
            assert done.returncode == small.LOST, done.stderr
            said.write_bytes(pickle.dumps(done))
    return spec, home / "run", pickle.loads(said.read_bytes())
