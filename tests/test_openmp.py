"""OpenMP's threads wait asleep, unless the user named another way."""

import os
import re
import subprocess
import sys

import pytest

from mechprobe.openmp import FEW_SPINS, yield_cores, yielding

NAMED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize("named", NAMED)
def test_what_the_user_named_is_kept(named, monkeypatch):
    environment = {named: "7"}
    yield_cores(environment)
    assert environment == {named: "7"}
    monkeypatch.setenv(named, "active")
    with yielding():
        assert os.environ[named] == "active"
    assert os.environ[named] == "active"


def test_the_environment_is_left_as_it_was(monkeypatch):
    for name in NAMED:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with yielding():
        assert os.environ["GOMP_SPINCOUNT"] == FEW_SPINS
    assert dict(os.environ) == before


def test_the_library_that_llamacpp_computes_with_has_read_it():
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    code = "from mechprobe.models.llamacpp import binding; binding()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if not said:
        pytest.skip("the binding computes without libgomp here")
    assert set(said) == {FEW_SPINS}
