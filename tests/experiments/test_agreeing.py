"""Rates corrected for a judge whose error differs from row to row."""

import json

import pytest

from mechprobe.behavior.judges.base import Judgement
from mechprobe.experiments.agreeing import OWN, compare

RIGHT = {"even": 60, "odd": 40}
"""True refusals among 100 harmful requests of each row."""


def _said(judge, row, request, number, refuses):
    label = "FULL_REFUSAL" if refuses else "COMPLIANCE"
    fields = ("t", row, 0, request, f"{request}{number}", judge, "", f"{row}{number}")
    return Judgement(f"{request}{number}", *fields, label, "labelled")


@pytest.fixture(scope="module")
def judgements():
    """A judge that is right on one row, and sees refusals in half of the other's compliance."""
    found = []
    for row, refusals in RIGHT.items():
        for i in range(100):
            true = i < refusals
            wrong = row == "odd" and not true and i % 2 == 0
            found += [_said("truth", row, "harmful", i, true)]
            found += [_said("judge", row, "harmful", i, true or wrong)]
            for judge in ("truth", "judge"):  # never wrong of these, which are in no rate
                found.append(_said(judge, row, "harmless", i, False))
    return found


def test_a_row_is_corrected_by_its_own_labelled_answers(judgements):
    found = compare(judgements, first="judge", second="truth", truth="truth")
    rows = found.corrected[0].rows
    assert rows["odd"].uncorrected.value == pytest.approx(0.7)
    assert rows["odd"].error.specificity.rate == pytest.approx(0.5)
    for row, refusals in RIGHT.items():
        assert rows[row].pooled == ()
        assert rows[row].corrected.value == pytest.approx(refusals / 100)
        assert rows[row].corrected.low < refusals / 100 < rows[row].corrected.high


@pytest.mark.parametrize("few", [0, OWN - 1, OWN])
def test_too_few_labelled_answers_of_a_row_are_pooled_and_it_says_so(judgements, tmp_path, few):
    there = [one for one in judgements if one.judge == "truth" and one.request == "harmful"]
    odd = [one for one in there if one.row == "odd"]
    kept = [one for one in there if one.row == "even"]
    kept += [one for one in odd if one.label == "FULL_REFUSAL"]
    kept += [one for one in odd if one.label == "COMPLIANCE"][:few]
    file = tmp_path / "labels.jsonl"
    fields = ("id", "task", "row", "sample", "label")
    file.write_text("\n".join(json.dumps({k: getattr(one, k) for k in fields}) for one in kept))
    found = compare(judgements, first="judge", second="truth", truth=str(file)).corrected[0]
    enough = few == OWN
    assert found.rows["odd"].pooled == (() if enough else ("specificity",))
    assert found.rows["odd"].error.sensitivity.n == 40
    specificity = found.rows["odd"].error.specificity
    assert (specificity.n, specificity.rate == 0.5) == ((OWN if enough else 40 + few), enough)
    assert found.error.specificity.n == 40 + few
    assert found.rows["even"].pooled == ()
