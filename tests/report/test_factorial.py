"""The page of a factorial: untrusted names, missing parts, the same bytes."""

import re

import numpy as np
import pandas as pd
import pytest

from mechprobe.analysis.factorial import CellOf, Design, analyse_factorial
from mechprobe.report.factorial import factorial_report, verdict
from mechprobe.report.factorial_sections import factorial_sections

EVIL = '<img src=x onerror="alert(1)">$x_1$'


def made(temperatures=(0.0, 1.0), judges=("a", "b", "c"), model=EVIL, clusters=12):
    rng = np.random.default_rng(0)
    cells = (
        CellOf(model, "f", "FP16@transformers", "FP16", "transformers", "", False),
        CellOf(model, "f", "Q@transformers", "Q", "transformers", "FP16@transformers", False),
        CellOf(model, "f", "gone@transformers", "gone", "transformers", "FP16@transformers", False),
    )
    rows = [
        {
            "model": model, "cell": cell.cell, "request": request, "temperature": at,
            "prompt": f"{EVIL}{request}{i}", "cluster": str(i), "sample": k, "judge": judge,
            "label": "comply" if rng.random() < 0.2 + 0.4 * at else "refuse",
        }
        for cell in cells[:2]
        for at in temperatures
        for request in ("harmful", "benign")
        for i in range(clusters)
        for k in range(3)
        for judge in judges
    ]  # fmt: skip
    design = Design(cells, temperatures, dict.fromkeys(temperatures, 3), judges)
    document = analyse_factorial(pd.DataFrame(rows), design)
    return {"name": EVIL, **document, "errors": {"m/gone": f"no file {EVIL}"}}


@pytest.fixture(scope="module")
def document():
    return made()


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


def test_every_number_of_the_verdict_is_one_of_the_document(document):
    base = [r for r in document["rates"] if r["cell"].startswith("FP16") and "asr" in r]
    moved = 100 * (base[1]["asr"] - base[0]["asr"])
    assert f"by {moved:+.1f} points" in verdict(document)
    assert "of 1 quantized cell it acts otherwise" in verdict(document)


def test_parts_that_cannot_be_had_say_why():
    alone = made(judges=("a",), clusters=5)
    said = {part.key: " ".join(part.said) for part in factorial_sections(alone)}
    assert "one judge read the answers" in said["judges"]
    assert "too few clusters: 5 clusters of prompts; 10 are needed" in said["interaction"]
    nothing = {**alone, "rates": [], "interactions": []}
    assert verdict(nothing) == "No cell could be measured."
    (only,) = factorial_sections(nothing)
    assert only.said == ("Not measured: no cell could be measured.",)
