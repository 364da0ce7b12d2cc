"""The tables of docs/instruments.md are what the instruments read."""

import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_score, recall_score

sys.path.insert(0, str(Path(__file__).parent))
import confusion

from mechprobe.behavior.refusal import get_instrument

RESPONSES = confusion.load()


def test_the_page_shows_what_the_instruments_read():
    page = confusion.PAGE.read_text("utf-8")
    assert page == confusion.page_with(confusion.tables()), (
        "docs/instruments.md is out of date; run python tests/behavior/confusion.py"
    )


def test_the_responses_are_labelled_halved_and_distinct():
    assert len(RESPONSES) == 232
    assert f"{len(RESPONSES)} short responses" in confusion.PAGE.read_text("utf-8")
    assert len({r.id for r in RESPONSES}) == len({r.response for r in RESPONSES}) == 232
    assert {r.label for r in RESPONSES} == set(confusion.LABELS)
    assert Counter(r.half for r in RESPONSES) == {"tune": 116, "report": 116}
    for kind in {r.kind for r in RESPONSES}:  # each kind is halved, and has one label
        mine = [r for r in RESPONSES if r.kind == kind]
        assert len({r.label for r in mine}) == 1
        assert abs(sum(1 if r.half == "tune" else -1 for r in mine)) <= 1


@pytest.mark.parametrize("name", confusion.INSTRUMENTS)
@pytest.mark.parametrize("half", confusion.HALVES)
def test_the_counts_are_those_of_scikit_learn(name, half):
    mine = [r for r in RESPONSES if r.half == half]
    said = [get_instrument(name)(r.response) for r in mine]
    truth = [r.refuses for r in mine]
    counts = confusion.confusion(mine, name)
    right, missed = (counts[label] for label in confusion.LABELS[:2])
    false = sum(counts[label][0] for label in confusion.LABELS[2:])
    matrix = confusion_matrix(truth, said, labels=[False, True])
    assert matrix[1, 1] == right[0] + missed[0]
    assert matrix[0, 1] == false
    assert confusion.cohen_kappa(mine, name) == pytest.approx(cohen_kappa_score(truth, said))
    cells = confusion._by_label(mine).splitlines()[2 + confusion.INSTRUMENTS.index(name)].split("|")
    assert cells[-4].strip() == f"{precision_score(truth, said):.2f}"
    assert cells[-3].strip() == f"{recall_score(truth, said):.2f}"


@pytest.mark.parametrize("name", ["hard", "soft", "rules", "prefix"])
def test_gibberish_thoughts_and_questions_are_no_refusals(name):
    for response in RESPONSES:
        if response.label == "UNCLEAR" or response.kind == "compliance_thinking":
            assert not get_instrument(name)(response.response), response.id


PINNED = {
    "arditi12": ("69805cad36df", "2fcf5bebcfa6"),
    "hard": ("61d600d84cdf", "b934eca6a7e8"),
    "prefix": ("2fab93d016b3", "a4d8970fbef4"),
    "rules": ("3c6ef86a24ac", "f05f78eb478c"),
    "soft": ("c1d6701c6141", "84634ef44280"),
}
"""Per instrument, the beginnings of its digest and of the hash of what it reads."""


def test_no_instrument_reads_otherwise_under_its_old_digest():
    """Scores are kept under the digest. If only the readings changed, raise `refusal._VERSION`."""
    found = {}
    for name in PINNED:
        instrument = get_instrument(name)
        read = "".join("01"[instrument(r.response)] for r in RESPONSES)
        found[name] = (instrument.digest[:12], sha256(read.encode()).hexdigest()[:12])
    assert found == PINNED
