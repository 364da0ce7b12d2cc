"""Every test is offline, on few threads, and leaves the user's cache alone."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
if _BESIDE.is_dir():
    os.environ.setdefault("MECHPROBE_EVALUATION_DATA", str(_BESIDE))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """A cache of this run's own, unless the caller names one."""
    if "MECHPROBE_CACHE" not in os.environ:
        base = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            base = base.parent  # one cache for all workers
        os.environ["MECHPROBE_CACHE"] = str(base / "cache")
