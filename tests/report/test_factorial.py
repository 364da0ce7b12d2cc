"""The page of a factorial: untrusted names, missing parts, the same bytes."""

import re

import pytest
from made import factorial

from mechprobe.errors import TableError
from mechprobe.report.factorial import factorial_report, tiles, verdict
from mechprobe.report.factorial_interaction import interaction_section
from mechprobe.report.factorial_sections import factorial_sections


@pytest.fixture(scope="module")
def document():
    return factorial()


def test_names_and_errors_are_text(document):
    page = factorial_report(document).html
    assert "<img" not in page
    assert page.count("&lt;img") > 5
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)


def test_the_same_document_gives_the_same_bytes(document):
    first, second = factorial_report(document), factorial_report(document)
    assert first.html == second.html
    assert dict(first.figures) == dict(second.figures)
    assert {name.rpartition(".")[2] for name in first.figures} == {"svg", "png"}


def test_what_is_missing_stands_first(document):
    page = factorial_report(document).html
    missing = page[page.index('id="missing"') : page.index('id="rates"')]
    assert "m/gone" in missing
    assert "gone@transformers, T = 1" in missing


def test_every_number_of_the_verdict_is_one_of_the_document():
    document = factorial(clusters=30)
    base = [r for r in document["rates"] if r["cell"].startswith("FP16") and "asr" in r]
    moved = 100 * (base[1]["asr"] - base[0]["asr"])
    assert f"by {moved:+.1f} points" in verdict(document)
    assert "shown in 0 of 1 quantized cell by log-odds (GEE)" in verdict(document)
    (cdi,) = document["interactions"][0]["cdi"]
    apart = int(cdi["low"] > 0 or cdi["high"] < 0)
    assert f"in {apart} of 1 quantized cell by rates (CDI at T = 1 excludes 0)" in verdict(document)


def test_the_headline_needs_both_ends_and_names_what_is_unclear():
    whole = factorial(temperatures=(0.0, 0.5, 1.0))
    top = [r for r in whole["rates"] if r["temperature"] == 1.0 and r["cell"].startswith("FP16")]
    lost = {**whole, "rates": [row for row in whole["rates"] if row not in top]}
    assert verdict(lost).startswith("No baseline has a rate at temperature 0 and at 1.")
    assert "unclear" not in verdict(whole)
    row = next(row for row in top if row["request"] == "harmful")
    row |= {"unclear": 5, "unclear_share": 5 / (5 + row["decided"])}
    said = f"up to {100 * row['unclear_share']:.1f} % of a cell's answers (FP16@transformers)"
    assert said in verdict(whole)
    lists = {**whole, "ensemble": {**whole["ensemble"], "blind": whole["ensemble"]["judges"]}}
    assert "No judge here can tell compliance from gibberish" in verdict(lists)


def test_where_nothing_moves_and_nothing_wavers_the_page_says_no_more():
    still = factorial()
    for row in still["rates"]:
        row |= {"dfr": 0.0, "dfr_least": 0.0, "dfr_most": 0.0}
        if row["request"] == "harmful":
            row["asr"] = 0.0
    said = " ".join(line for part in factorial_sections(still) for line in part.said)
    assert "Above temperature 0 no prompt has two labels in any cell." in said
    assert "ASR at temperature 1 is in every cell what it is at 0" in said
    assert "would not have" not in said
    assert "from 0.0 % to 0.0 %" not in said
    assert not any(name == "most prompts waver" for name, _, _ in tiles(still))
    for i, row in enumerate([r for r in still["rates"] if r["temperature"] == 0] * 4):
        still["rates"].append({**row, "cell": f"W{i}@transformers", "dfr": 0.1})
    told = " ".join(line for part in factorial_sections(still) for line in part.said)
    assert "and 4 more: a defect" in told


def test_a_document_of_another_version_is_one_line(document):
    with pytest.raises(TableError, match="has schema 1, this version reads 2; run the factorial"):
        factorial_report({**document, "schema": 1})


def test_parts_that_cannot_be_had_say_why():
    alone = factorial(judges=("a",), clusters=5)
    said = {part.key: " ".join(part.said) for part in factorial_sections(alone)}
    assert "one judge read the answers" in said["judges"]
    assert "too few clusters: 5 clusters of prompts; 10 are needed" in said["interaction"]
    (row,) = (one for one in alone["interactions"] if one["cell"] == "Q@transformers")
    many = {**alone, "interactions": [{**row, "cell": f"Q{i}@transformers"} for i in range(7)]}
    assert "Not tested either: 2 more cells" in " ".join(interaction_section(many).said)
    nothing = {**alone, "rates": [], "interactions": []}
    assert verdict(nothing) == "No cell could be measured."
    (only,) = factorial_sections(nothing)
    assert only.said == ("Not measured: no cell could be measured.",)
