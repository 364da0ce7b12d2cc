"""The numbers of arXiv 2606.10154, recomputed from its published tables by the shipped code."""

import csv
from collections import Counter

import pytest
from published import DELTAS, REFERENCE, needs_reference

from mechprobe import stats
from mechprobe.analysis.foreign import analyse_table
from mechprobe.analysis.tables import read_table

pytestmark = needs_reference
WIDE = REFERENCE / "safety_wide.csv"
AT_THE_THRESHOLD = "llama3.2-3b/Q4_K_M"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def analysed(**chosen):
    table = read_table(DELTAS, sizes={"refusal": 220})
    return analyse_table(table, **{"preset": "study", **chosen})


def with_both(document):
    return [
        row
        for row in document["rows"]
        if row["baseline"] and row["deltas"]["quality"]["points"] is not None
    ]


def test_every_published_regime_is_found():
    document = analysed()
    assert [row["regime"] for row in document["rows"]] == [row["regime"] for row in rows(DELTAS)]


@pytest.mark.parametrize(("strict", "hidden"), [(True, 9), (False, 10)])
def test_nine_hidden_rows_or_ten_and_one_near(strict, hidden):
    document = analysed(strict=strict)
    both = with_both(document)
    assert len(both) == 43
    found = Counter(row["regime"] for row in both)
    assert (found["hidden_danger"], found["near_hidden_danger"]) == (hidden, 1)
    assert document["regimes"]["boundary"] == [AT_THE_THRESHOLD]


def test_the_row_at_the_threshold_lost_22_of_220():
    row = next(
        row for row in analysed()["rows"] if f"{row['model']}/{row['cell']}" == AT_THE_THRESHOLD
    )
    assert row["deltas"]["refusal"]["points"] == -10
    assert (row["regime_strict"], row["regime_non_strict"]) == ("neutral", "hidden_danger")
    assert row["boundary_of"] == ["refusal"]


def test_refusal_moved_further_in_35_of_43_rows():
    found = analysed()["asymmetry"]
    assert (found["faster"], found["n"], found["not_paired"]) == (35, 43, 2)
    assert (found["low"], found["high"]) == pytest.approx(stats.wilson(35, 43), rel=1e-5)


def test_our_preset_tells_collapse_and_absence_from_neutral():
    found = Counter(row["regime"] for row in analysed(preset="mechprobe")["rows"])
    assert (found["joint_collapse"], found["not_measured"]) == (4, 2)
    assert found["hidden_danger"] == 9


def test_rates_lead_to_the_published_deltas(tmp_path):
    base = {(row["base_model"], row["quant"]): row["baseline_quant"] for row in rows(DELTAS)}
    wide = rows(WIDE)
    path = tmp_path / "wide.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*wide[0], "baseline"])
        writer.writeheader()
        for row in wide:
            writer.writerow(row | {"baseline": base[row["base_model"], row["quant"]]})
    document = analyse_table(read_table(path))
    given = {
        (row["base_model"], row["quant"]): float(row["refusal_delta_pp"]) for row in rows(DELTAS)
    }
    compared = [row for row in document["rows"] if row["baseline"]]
    assert len(compared) == 45
    for row in compared:
        delta = row["deltas"]["refusal"]
        assert delta["points"] == pytest.approx(given[row["model"], row["cell"]], abs=0.0051)
        assert delta["points"] == pytest.approx(
            100 * (delta["after_count"] - delta["before_count"]) / 220, abs=1e-4
        )
        assert delta["mcnemar_p"] is None  # rates cannot be paired


@pytest.mark.parametrize("measure", ["refusal_rate", "bias_resistance"])
def test_wilson_intervals_of_the_published_rates(measure):
    # published: percentile bootstraps of the same counts, so alike but not the same
    for row in rows(WIDE):
        n = int(row[f"safety_{measure}_n"])
        count = round(float(row[f"safety_{measure}"]) * n)
        assert count / n == pytest.approx(float(row[f"safety_{measure}"]), abs=1e-12)
        low, high = stats.wilson(count, n)
        p, z2 = count / n, 1.959963984540054**2
        middle, half = (p + z2 / (2 * n)), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
        assert low == pytest.approx((middle - half) / (1 + z2 / n), abs=1e-12)
        assert high == pytest.approx((middle + half) / (1 + z2 / n), abs=1e-12)
        published = [float(row[f"safety_{measure}_ci_{end}"]) for end in ("lo", "hi")]
        assert [low, high] == pytest.approx(published, abs=0.025)


def test_ten_of_ten_has_a_lower_bound_of_0_7225():
    assert stats.wilson(10, 10)[0] == pytest.approx(0.7225, abs=5e-5)
