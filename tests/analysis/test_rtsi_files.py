"""Tables, stored calibrations and answers: what they say, and how they say that they cannot."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechprobe.analysis.rtsi import CIRCULARITY, screen
from mechprobe.analysis.rtsi_calibration import (
    load_calibration,
    rows_digest,
    score_checkpoint,
    store,
)
from mechprobe.analysis.rtsi_screening import score_rows, screen_answers
from mechprobe.analysis.rtsi_tables import read_deltas, read_regimes, read_rows
from mechprobe.analysis.rtsi_validation import validate
from mechprobe.analysis.templates import DELTAS, FEATURES, TemplateFeatures
from mechprobe.errors import ParityError, SpecError, TableError

sys.path.insert(0, str(Path(__file__).parent))
from published import TABLE, needs_reference

HEADER = "base_model,quant,refusal_rate_delta," + ",".join(DELTAS)
LINES = ["m,Q8,-0.01,0.0,0.01,0.0,1", "m,Q4,-0.3,-0.2,0.3,0.1,20", "m,Q2,-0.6,-0.5,0.4,0.4,30",
         "n,Q8,0.0,0.01,0.0,0.02,2", "n,Q4,-0.2,-0.1,0.2,0.2,25"]  # fmt: skip


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([HEADER, *LINES]) + "\n")
    return path


@pytest.fixture
def calibration(table, tmp_path):
    rows = read_deltas(table)
    path = tmp_path / "calibration.json"
    kept = store(screen(rows).calibration, rows, source=str(table), instrument="hard")
    kept.save(path)
    return path


def _edited(path, line, old, new):
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_by_its_own_names(table):
    named = _edited(table, 1, "base_model,quant,refusal_rate_delta", "net,bits,fall")
    columns = {"model": "net", "cell": "bits", "refusal_delta": "fall"}
    found = read_deltas(named, columns)
    assert found["model"].tolist() == ["m", "m", "m", "n", "n"]
    assert found["refusal_delta"].tolist() == [-0.01, -0.3, -0.6, 0.0, -0.2]
    assert found["template"].unique().tolist() == ["both"]


def test_rates_say_which_side_refused(table):
    lines = table.read_text().splitlines()
    # rates before: 0.01, 0.3, 0.6, 0.0, 0.2; a float64 leaves 0.3 - 0.3 where it likes
    rates = ["refusal_rate", "0.0", "0.0", "0.1", "0.0", "0.1"]
    both = [f"{line},{rate}" for line, rate in zip(lines, rates, strict=True)]
    table.write_text("\n".join(both))
    assert read_deltas(table)["template"].tolist() == ["lost", "lost", "both", "neither", "both"]


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (3, "-0.3", "much", r"line 3, column 'refusal_rate_delta': 'much' is no number"),
        (3, "-0.3", "", r"line 3, column 'refusal_rate_delta': '' is no number"),
        (4, "30", "nan", r"line 4, column 'mean_tokens_refusal_delta': 'nan' is not finite"),
        (4, "-0.6", "-60", r"column 'refusal_rate_delta': -60 lies outside \[-1, 1\]; give shares"),
        (5, "n,", ",", r"line 5, column 'base_model': empty"),
        (5, "n,Q8", "m,Q8", r"line 5: m/Q8 stands in line 2 already"),
        (2, "m,Q8", "m,Q8,9", r"line 2: more fields than the header has"),
        (1, "quant", "bits", r"line 1: no column 'quant' \(cell\); there are base_model, bits"),
    ],
)
def test_a_wrong_table_names_line_and_column(table, line, old, new, message):
    with pytest.raises(TableError, match=message) as raised:
        read_deltas(_edited(table, line, old, new))
    assert str(table) in str(raised.value)


def test_a_role_that_is_none_and_files_that_are_not_there(table, tmp_path):
    with pytest.raises(TableError, match="'colour' is no column's role; there are model"):
        read_deltas(table, {"colour": "x"})
    with pytest.raises(TableError, match="no column 'why' \\(family\\)"):
        read_deltas(table, {"family": "why"})
    with pytest.raises(TableError, match=r"none\.csv: cannot be read"):
        read_deltas(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text(HEADER + "\n")
    with pytest.raises(TableError, match="no row below the header"):
        read_deltas(tmp_path / "empty.csv")


def test_a_line_number_counts_lines_and_not_rows(table):
    text = table.read_text().replace("m,Q8", '"m\nlong",Q8').replace("-0.3", "x")
    table.write_text(text)
    with pytest.raises(TableError, match="line 4, column"):
        read_deltas(table)


def test_validation_needs_scores_regimes_and_danger(table, tmp_path):
    regimes = tmp_path / "regimes.csv"
    regimes.write_text("base_model,quant,regime\nm,Q8,neutral\n")
    rows = read_deltas(table)
    with pytest.raises(TableError, match="no column of published scores"):
        validate(rows, read_regimes(regimes))
    scored = rows.assign(published=0.5)
    with pytest.raises(TableError, match="no row m/Q4"):
        validate(scored, read_regimes(regimes))
    whole = scored[["model", "cell"]].assign(regime="neutral")
    with pytest.raises(TableError, match=r"counts as danger .*; there are neutral"):
        validate(scored, whole)


def test_a_document_of_a_run_gives_the_same_rows(table, tmp_path):
    rows = read_deltas(table).assign(baseline="F16")
    document = screen(rows).as_dict(np.zeros(len(rows)))
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps({"schema": 1, "rtsi": document}))
    pd.testing.assert_frame_equal(read_rows(path), rows[read_rows(path).columns])
    path.write_text(json.dumps({"rtsi": {"not_measured": "no answers"}}))
    with pytest.raises(TableError, match="RTSI was not measured there: no answers"):
        read_rows(path)
    path.write_text("[]")
    with pytest.raises(TableError, match="no field 'rtsi'"):
        read_rows(path)


def test_a_calibration_comes_back_as_it_was(calibration, table):
    found = load_calibration(calibration)
    rows = read_deltas(table)
    assert found.calibration == screen(rows).calibration
    assert found.provenance.source == "table.csv"
    assert found.provenance.rows == rows_digest(rows.iloc[::-1])
    assert found.provenance.rows != rows_digest(rows.iloc[1:])
    written = json.loads(calibration.read_text())
    assert written["circularity"] == CIRCULARITY
    assert written["n"] == 5


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["kind"], "x", "no RTSI calibration"),
        (["schema"], 9, "field 'schema': 9 is not 1"),
        (["definitions"], {}, "field 'definitions': other features"),
        (["weights", FEATURES[0]], "x", f"field 'weights.{FEATURES[0]}': 'x' is no number"),
        (["weights", FEATURES[0]], -1.0, f"field 'weights.{FEATURES[0]}': -1.0 is no number"),
        (["weights", FEATURES[0]], 0.9, "field 'weights': they do not sum to 1"),
        (["minima", FEATURES[1]], 7.0, "field 'minima': one exceeds its maximum"),
        (["maxima"], None, f"field 'maxima.{FEATURES[0]}': None"),
        (["n"], 0, "field 'n': 0 is no count"),
        (["correlations"], 3, "field 'correlations': missing"),
        (["provenance", "rows"], None, "field 'provenance'"),
    ],
)
def test_a_damaged_calibration_names_the_field(calibration, path, value, message):
    found = json.loads(calibration.read_text())
    inner = found
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    calibration.write_text(json.dumps(found))
    with pytest.raises(TableError, match=message) as raised:
        load_calibration(calibration)
    assert str(calibration) in str(raised.value)


def test_a_calibration_that_is_not_there_or_no_json(tmp_path):
    with pytest.raises(TableError, match="mechprobe rtsi fit"):
        load_calibration(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"schema": 1,\n "ki')
    with pytest.raises(TableError, match="line 2: not JSON"):
        load_calibration(tmp_path / "cut.json")


def test_a_checkpoint_is_scored_by_the_stored_scale_alone(calibration, table):
    scores = score_rows(calibration, table)
    whole = screen(read_deltas(table)).rows
    assert [one.score for one in scores.values()] == pytest.approx(whole["score"].tolist())
    # what else is in the batch changes nothing
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[3]]) + "\n")
    assert score_rows(calibration, table) == {"m/Q2": scores["m/Q2"]}


def test_beyond_the_calibrated_range_a_feature_counts_as_its_end(calibration):
    scale = load_calibration(calibration).calibration
    base = TemplateFeatures(90, 0.9, 0.1, 0.1, 20.0)
    far = TemplateFeatures(10, 0.1, 0.9, 0.9, 500.0)
    found = score_checkpoint(scale, far, base)
    assert found.score == pytest.approx(1.0)
    assert found.outside == FEATURES
    assert found.band == "HIGH"


@pytest.mark.parametrize(
    ("now", "before", "band", "scored"),
    [(0, 5, "HIGH", False), (0, 0, "UNKNOWN", False), (5, 5, "LOW", True)],
)
def test_a_checkpoint_without_refusals(calibration, now, before, band, scored):
    scale = load_calibration(calibration).calibration
    none = TemplateFeatures(0, 0.0, 0.0, 0.0, 0.0)
    some = TemplateFeatures(5, 0.5, 0.5, 0.5, 9.0)
    found = score_checkpoint(scale, some if now else none, some if before else none)
    assert (found.band, found.score is not None) == (band, scored)


def _answers(path, texts, **more):
    lines = [
        {"id": f"p{i}", "label": "harmful", "text": text, "ids": [1] * len(text.split())} | more
        for i, text in enumerate(texts)
    ]
    lines.append({"id": "x", "label": "harmless", "text": "I can't help.", "ids": [1] * 99})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_are_read_by_the_instrument(calibration, tmp_path):
    plain = ["I'm sorry, but I can't help with that."] * 8 + ["Sure, here it is"] * 2
    base = _answers(tmp_path / "base.jsonl", plain)
    same = screen_answers(calibration, base, base)
    assert (same.band, same.score) == ("LOW", 0.0)
    assert same.notes == ()
    other = ["I cannot do this.", "No, I won't help with that, and I can't.", *plain[:1] * 2]
    cell = _answers(tmp_path / "cell.jsonl", other + ["Sure, here it is"] * 6)
    found = screen_answers(calibration, base, cell)
    assert found.deltas["dominant_prefix_share_delta"] == 2 / 4 - 1
    assert found.deltas["unique_prefix_rate_delta"] == 3 / 4 - 1 / 8
    assert found.deltas["mean_tokens_refusal_delta"] == (4 + 9 + 8 + 8) / 4 - 8
    assert found.band != "LOW"
    noted = screen_answers(calibration, base, base, "prefix")
    assert noted.notes == ("the calibration was read by hard, these answers by prefix",)


def test_a_thought_is_none_of_the_answers_first_words_nor_of_its_length(calibration, tmp_path):
    plain = ["I'm sorry, but I can't help with that."] * 8
    base = _answers(tmp_path / "base.jsonl", plain)
    thought = "<think>Sure. Or is it wrong to help?</think>"
    lines = [json.loads(line) for line in base.read_text().splitlines()]
    for line in lines:
        line |= {"text": thought + line["text"], "answer_start": 9}
        line["ids"] += [1] * 9
    lines[7]["text"] = "<think>Sure, I can't help with"  # cut, so that there is no answer
    cell = tmp_path / "cell.jsonl"
    cell.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = screen_answers(calibration, base, cell)
    assert found.deltas["dominant_prefix_share_delta"] == 0
    assert found.deltas["mean_tokens_refusal_delta"] == 0
    assert found.deltas["unique_prefix_rate_delta"] == 1 / 7 - 1 / 8
    lines[0]["answer_start"] = 99
    cell.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TableError, match="line 1: the field 'answer_start' is no count"):
        screen_answers(calibration, base, cell)


def test_answers_to_other_prompts_are_not_compared(calibration, tmp_path):
    base = _answers(tmp_path / "base.jsonl", ["No, I can't."] * 3, prompts="aa")
    fewer = _answers(tmp_path / "fewer.jsonl", ["No, I can't."] * 2, prompts="aa")
    with pytest.raises(ParityError, match="answer other prompts"):
        screen_answers(calibration, base, fewer)
    other = _answers(tmp_path / "other.jsonl", ["No, I can't."] * 3, prompts="bb")
    with pytest.raises(ParityError, match="other token ids"):
        screen_answers(calibration, base, other)
    with pytest.raises(SpecError, match="unknown refusal instrument 'mood'"):
        screen_answers(calibration, base, base, "mood")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: needs an object"),
        ('{"id": "a"}', "line 2: the field 'text' is missing"),
        ('{"text": "a"}', "line 2: the field 'id' is missing"),
        ('{"id": "a", "text": "a"}', r"line 2: the field 'new_tokens' \(or 'ids'\) is missing"),
        ('{"id": "a", "text": "a", "new_tokens": -1}', "line 2: the field 'new_tokens'"),
    ],
)
def test_malformed_answers_name_the_line(calibration, tmp_path, line, message):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "b", "text": "a", "new_tokens": 1}\n' + line + "\n")
    with pytest.raises(TableError, match=message):
        screen_answers(calibration, path, path)


def test_answers_without_a_harmful_request(calibration, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "b", "label": "harmless", "text": "a", "new_tokens": 1}\n')
    with pytest.raises(TableError, match="no answer to a harmful request"):
        screen_answers(calibration, path, path)


@needs_reference
def test_the_published_rows_score_as_published_one_by_one(tmp_path):
    rows = read_deltas(TABLE)
    path = tmp_path / "calibration.json"
    store(screen(rows).calibration, rows, source="published").save(path)
    found = score_rows(path, TABLE)
    published = rows["published"].tolist()
    assert [one.score for one in found.values()] == pytest.approx(published, abs=3e-5)


def test_no_calibration_is_shipped():
    package = Path(sys.modules["mechprobe"].__file__).parent
    assert not [p for p in package.rglob("*.json") if "rtsi-calibration" in p.read_text()]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (5, "field 'rtsi.rows': no list of rows"),
        ([], "field 'rtsi.rows': no list of rows"),
        ([7], r"field 'rtsi\.rows\[0\]': no row with fields"),
        ([{"model": "m"}], r"rtsi\.rows\[0\]': no 'family'"),
        ([{"refusal_delta": "x"}], r"rows\[0\]', field 'refusal_delta': 'x' is no number"),
        ([{"model": 1}], r"rows\[0\]', field 'model': 1 is no text"),
    ],
)
def test_a_damaged_document_is_one_line(tmp_path, rows, said):
    texts = dict.fromkeys(("model", "family", "cell", "baseline", "template"), "both")
    whole = texts | dict.fromkeys(("refusal_delta", *DELTAS), 0.5)
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        rows = [rows[0] if "no 'family'" in said else whole | rows[0]]
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps({"rtsi": {"rows": [whole]}}))
    assert len(read_rows(path)) == 1
    path.write_text(json.dumps({"rtsi": {"rows": rows}}))
    with pytest.raises(TableError, match=said) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
