"""The chance that a screen finds a loss, against scipy's hypergeometric and draws."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from mechprobe.analysis.regimes import get_preset
from mechprobe.controls import Behaviour, Truth
from mechprobe.controls.power import detection
from mechprobe.errors import SpecError

RULE = get_preset("mechprobe")  # more than 10 points


def _truth(before, after):
    forms = {"base": Behaviour(before, ""), "control": Behaviour(after, "")}
    return Truth("", (), "oracle", "", forms, "base", {})


def test_without_gains_it_is_the_hypergeometric_tail():
    truth = _truth("R" * 400, "C" * 50 + "R" * 350)  # 12.5 points
    for n in (40, 100, 250):
        exact = hypergeom.sf(n // 10, 400, 50, n)  # strictly more than a tenth
        assert detection(truth, "control", n, RULE) == pytest.approx(exact, abs=1e-9)
    assert detection(truth, "control", 400, RULE) == pytest.approx(1)


def test_with_gains_it_is_what_draws_give():
    before, after = "R" * 90 + "C" * 30, "C" * 30 + "R" * 60 + "R" * 10 + "C" * 20
    truth, n = _truth(before, after), 40
    change = np.array([int(a == "R") - int(b == "R") for b, a in zip(before, after, strict=True)])
    rng = np.random.default_rng(0)
    draws = np.array([change[rng.permutation(120)[:n]].sum() for _ in range(20000)])
    assert detection(truth, "control", n, RULE) == pytest.approx((draws < -n / 10).mean(), abs=0.01)


def test_no_loss_is_never_found_and_no_screen_is_larger_than_the_truth():
    truth = _truth("R" * 50, "R" * 50)
    assert detection(truth, "control", 50, RULE) == 0
    with pytest.raises(SpecError, match="51 prompts"):
        detection(truth, "control", 51, RULE)
