import pytest

from mechprobe.experiments.rundir import RunDirectory, opened


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path / "run", "name: test\n", {"version": "0"}) as directory:
        assert isinstance(directory, RunDirectory)
        yield directory
