"""The published tables, where they are at hand."""

import os
from pathlib import Path

import pytest

REFERENCE = Path(
    os.environ.get("MECHPROBE_REFERENCE_DATA", Path(__file__).parents[3] / "shared" / "reference")
)
TABLE = REFERENCE / "rtsi_table.csv"
DELTAS = REFERENCE / "published_deltas.csv"
needs_reference = pytest.mark.skipif(
    not TABLE.is_file(), reason="no published tables: set MECHPROBE_REFERENCE_DATA"
)
