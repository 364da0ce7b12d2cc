"""`mechprobe rtsi fit|score|validate`."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from published import DELTAS, TABLE, needs_reference

CIRCULAR = "fitted to the refusal loss that it is then asked to route"


@pytest.fixture
def small(tmp_path):
    names = ("dominant_prefix_share", "unique_prefix_rate", "prefix_entropy_norm",
             "mean_tokens_refusal")  # fmt: skip
    lines = ["net,bits,fall," + ",".join(f"{name}_delta" for name in names)]
    lines += [f"m,b{i},{-0.1 * i},{-0.1 * i},{0.08 * i},{0.05 * i * i},{7 * i}" for i in range(6)]
    path = tmp_path / "small.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = ("--column", "model=net", "--column", "cell=bits", "--column", "refusal_delta=fall")


@needs_reference
def test_validate_prints_one_object(main):
    done = main("rtsi", "validate", TABLE, "--regimes", DELTAS, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["max_abs_error"] <= 3e-5
    whole = [found[name] for name in ("routed", "danger", "low_bucket", "loo_low_bucket")]
    assert whole == [10, 10, 23, 23]
    assert found["loo_missed"] == 0
    assert round(found["wilson_lower"], 4) == 0.7225
    assert CIRCULAR in found["details"]["circularity"]


@needs_reference
def test_validate_in_words_says_that_it_is_circular(main):
    done = main("rtsi", "validate", TABLE, "--regimes", DELTAS)
    assert done.code == 0
    assert "10 of 10 dangerous rows routed (Wilson 95 % lower bound 0.7225)" in done.out
    assert "|refusal_rate delta|" in done.out
    assert CIRCULAR in " ".join(done.out.split())


@needs_reference
def test_validate_counts_the_regimes_that_it_is_told(main):
    done = main(
        "rtsi", "validate", TABLE, "--regimes", DELTAS, "--danger", "hidden_danger", "--json"
    )
    assert json.loads(done.out)["danger"] == 9
    done = main("rtsi", "validate", TABLE, "--regimes", DELTAS, "--danger", "no_such")
    assert done.code == 2
    assert "counts as danger (no_such)" in done.err
    assert done.err.count("\n") == 1


def test_fit_then_score_one(main, small, tmp_path):
    done = main("rtsi", "fit", small, "--out", "cal.json", *COLUMNS)
    assert (done.code, done.err) == (0, "")
    assert CIRCULAR in " ".join(done.out.split())
    done = main("rtsi", "score", small, "-c", "cal.json", *COLUMNS, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["m/b0"]["band"] == "LOW"
    assert found["m/b5"]["score"] == pytest.approx(1.0)
    assert all(CIRCULAR in one["circularity"] for one in found.values())
    answers = tmp_path / "base.jsonl"
    answers.write_text(
        "".join(
            json.dumps({"id": str(i), "text": "I can't help with that.", "new_tokens": 6}) + "\n"
            for i in range(5)
        )
    )
    pair = ("--baseline", answers, "--candidate", answers)
    done = main("rtsi", "score", "-c", "cal.json", *pair)
    assert done.code == 0
    assert "base: RTSI 0.0000, LOW" in done.out
    assert "the calibration was read by an unnamed instrument" in done.out
    assert CIRCULAR in " ".join(done.out.split())


def test_a_checkpoint_that_nobody_can_judge_is_exit_4(main, small, tmp_path):
    main("rtsi", "fit", small, "--out", "cal.json", *COLUMNS)
    answers = tmp_path / "never.jsonl"
    answers.write_text(json.dumps({"id": "a", "text": "Sure, a lamp.", "new_tokens": 4}) + "\n")
    done = main("rtsi", "score", "-c", "cal.json", "--baseline", answers, "--candidate", answers)
    assert done.code == 4
    assert "RTSI not measured, UNKNOWN" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "none.csv", "-o", "c.json"), "none.csv: cannot be read"),
        (("fit", "small.csv", "-o", "c.json"), "no column 'base_model' (model)"),
        (("fit", "small.csv", "-o", "c.json", "--column", "net"), "must be ROLE=COLUMN"),
        (("fit", "small.csv", "-o", "no/c.json", *COLUMNS), "cannot be written"),
        (("score", "-c", "c.json"), "give TABLE.csv, or --baseline and --candidate"),
        (("score", "small.csv", "-c", "c.json"), "make one with mechprobe rtsi fit"),
        (("validate", "small.csv", "--regimes", "r.csv", *COLUMNS), "r.csv: cannot be read"),
    ],
)
def test_mistakes_are_one_line(main, small, arguments, message):
    done = main("rtsi", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_help_names_the_join_and_the_danger(main):
    done = main("rtsi", "validate", "--help")
    words = " ".join(done.out.replace("\u2502", " ").split())
    assert "Joined with TABLE on (base_model, quant)" in words
    assert "hidden_danger and near_hidden_danger" in words
