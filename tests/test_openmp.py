"""OpenMP's threads wait asleep, unless the user named another way."""

import os
import re
import subprocess
import sys

import pytest

from mechprobe.openmp import FEW_SPINS, yield_cores

NAMED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize("named", NAMED)
def test_what_the_user_named_is_kept(named):
    environment = {named: "7"}
    yield_cores(environment)
    assert environment == {named: "7"}


@pytest.mark.parametrize(
    "code", ["import mechprobe, xllamacpp", "import mechprobe, torch, xllamacpp"]
)
def test_the_libraries_that_engines_compute_with_have_read_it(code):
    """Torch brings a libgomp of its own, which llama.cpp then shares."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k not in NAMED}
        | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not said:
        pytest.skip("the binding computes without libgomp here")
    assert set(said) == {FEW_SPINS}
