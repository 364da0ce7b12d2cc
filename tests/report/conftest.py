import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import made

from mechprobe.report import make_report


@pytest.fixture(scope="session")
def material():
    return made.material(failed=True)


@pytest.fixture(scope="session")
def report(material):
    return make_report(material)
