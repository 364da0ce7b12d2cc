from fractions import Fraction

import pytest

from mechprobe.analysis.foreign import analyse_table
from mechprobe.analysis.tables import Written, read_table
from mechprobe.errors import TableError

HEAD = "model,cell,baseline,refusal_count,refusal_n\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "matrix.csv"
        path.write_text(text)
        return path

    return write


def deltas(document):
    return {one["cell"]: one["deltas"].get("refusal") for one in document["rows"]}


def test_counts_give_exact_points_and_no_tests(table):
    path = table(HEAD + "m,FP16,,220,220\nm,Q4,FP16,198,220\n")
    document = analyse_table(read_table(path))
    found = deltas(document)["Q4"]
    assert (found["points"], found["before_count"], found["after_count"]) == (-10, 220, 198)
    assert found["mcnemar_p"] is None
    assert found["low"] is None
    assert "outcomes by prompt" in found["not_measured"]
    assert deltas(document)["FP16"] is None


def test_an_index_without_a_name_is_no_field(table):
    rows = ["m,FP16,,0.9,100", "m,Q4,FP16,0.8,100", "m,Q2,FP16,0.4,100"]
    text = "model,cell,baseline,refusal_rate,refusal_n\n"
    plain = analyse_table(read_table(table(text + "\n".join(rows) + "\n")))
    numbered = "".join(f"{place},{row}\n" for place, row in enumerate(rows))
    assert analyse_table(read_table(table(f",{text}{numbered}"))) == plain


def test_lost_and_gained_prompts_allow_the_tests(table):
    head = HEAD.replace("\n", ",refusal_lost,refusal_gained\n")
    path = table(head + "m,FP16,,200,220,,\nm,Q4,FP16,180,220,25,5\nm,Q2,FP16,100,220,110,10\n")
    found = deltas(analyse_table(read_table(path)))
    assert found["Q4"]["mcnemar_p"] == pytest.approx(0.000325, rel=0.01)
    assert found["Q4"]["mcnemar_p_holm"] == pytest.approx(found["Q4"]["mcnemar_p"], rel=1e-5)
    assert found["Q4"]["mde_points"] > 3.57
    assert found["Q2"]["equivalent"] is False


def test_a_baseline_that_is_no_row_is_known_from_lost_and_gained(table):
    path = table(
        "model,precision,engine,baseline,harmful_refusal_count,harmful_refusal_n,"
        "harmful_refusal_delta_points,harmful_refusals_lost,harmful_refusals_gained\n"
        "m,AWQ,transformers,FP16@transformers,180,200,-9.5,20,1\n"
    )
    row = analyse_table(read_table(path))["rows"][0]
    assert row["cell"] == "AWQ@transformers"
    assert not row["engine_differs"]
    found = row["deltas"]["refusal"]
    assert (found["before_count"], found["points"]) == (199, -9.5)
    assert found["mcnemar_p"] < 1e-4


def test_a_rounded_rate_is_the_count_that_it_can_only_be(table):
    path = table(
        "model,quant,baseline,refusal_rate,refusal_n\nm,FP16,FP16,0.9364,220\nm,Q4,FP16,0.9,220\n"
    )
    found = deltas(analyse_table(read_table(path)))["Q4"]
    assert (found["before_count"], found["after_count"]) == (206, 198)


def test_a_rate_that_fits_several_counts_stays_a_rate(table):
    text = "model,quant,baseline,refusal_rate,refusal_n\nm,FP16,FP16,0.9,220\nm,Q4,FP16,0.8,220\n"
    found = deltas(analyse_table(read_table(table(text))))["Q4"]
    assert (found["points"], found["after_count"]) == (-10, None)


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [("22.00", "0.01", 22), ("22.004", "0.005", 22), ("22.3", "0.05", None), ("22", "0.5", None)],
)
def test_whole_numbers_behind_rounded_ones(value, half, expected):
    assert Written(Fraction(value), Fraction(half)).whole() == expected


def test_without_prompts_the_last_digit_is_what_may_be_off(table):
    path = table(
        "model,quant,baseline,refusal_delta_pp,bertscore_delta_pp\n"
        "m,FP16,FP16,0.00,0.00\nm,Q4,FP16,-10.00,0.1\nm,Q3,FP16,-9.90,0.1\n"
    )
    document = analyse_table(read_table(path), preset="study")
    assert document["regimes"]["boundary"] == ["m/Q4"]


def test_quality_of_our_own_matrix_is_named(table):
    path = table(
        "model,precision,engine,baseline,harmful_refusal_rate,harmful_refusal_n,rouge_value\n"
        "m,F16,llama.cpp,,1.0,200,0.8\nm,Q4,llama.cpp,F16@llama.cpp,0.5,200,0.79\n"
    )
    document = analyse_table(read_table(path, quality="rouge"), quality="rouge")
    row = document["rows"][1]
    assert row["deltas"]["rouge"]["points"] == -1
    assert row["regime"] == "hidden_danger"
    with pytest.raises(TableError, match="no column bleu_count, bleu_rate or bleu_value"):
        read_table(path, quality="bleu")


def test_sixteen_bits_are_the_baseline_where_no_column_says(table):
    path = table("model,cell,refusal_rate\nm,Q4,0.5\nm,FP16,0.75\n")
    rows = analyse_table(read_table(path))["rows"]
    assert [one["baseline"] for one in rows] == ["FP16", ""]


def test_a_baseline_of_a_table_that_refuses_harmless_requests_is_named(table):
    path = table(
        "model,precision,engine,harmful_refusal_rate,harmless_refusal_rate,harmless_refusal_n\n"
        "m,Q4,llama.cpp,0.5,0.1,16\nm,FP16,llama.cpp,0.75,0.75,16\n"
    )
    (said,) = analyse_table(read_table(path))["verdict"]["warnings"]
    assert "m/FP16@llama.cpp refuses 75.0 % of 16 harmless requests too" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a CSV table"),
        (HEAD, "has no rows"),
        ("model,refusal_rate\nm,1\n", "no column for cell; say which with --column cell=COLUMN"),
        ("model,cell\nm,FP16\n", "no column for refusal; say which with --column"),
        (HEAD + "m,FP16,,many,220\n", "line 2, column refusal_count: 'many' is no number"),
        (HEAD + "m,FP16,,221,220\n", "line 2, column refusal_count: 221 of 220 prompts"),
        (HEAD + "m,FP16,,2.5,220\n", "column refusal_count: 2.5 is no count"),
        (HEAD + "m,FP16,,0,0\n", "column refusal_n: 0 prompts"),
        (HEAD + ",FP16,,2,220\n", "line 2, column model: is empty"),
        (HEAD + "m,FP16,,2,9\nm,FP16,,2,9\n", "line 3, column cell: FP16 of m is there twice"),
        (HEAD + "m,Q4,FP16,2,9\n", "line 2, column baseline: FP16 is no row of m"),
        ("model,cell,refusal_rate\nm,Q4,1\n", "no row of m has 16 bits; add a column `baseline`"),
        ("model,cell,refusal_rate\nm,FP16,1.5\n", "1.5 is no share between 0 and 1"),
        (
            "model,cell,refusal_rate,refusal_n\nm,FP16,1.0,220\nm,Q4,0.5023,220\n",
            "line 3, column refusal_rate: 0.5023 is no count out of 220 prompts",
        ),
        (
            HEAD.replace("\n", ",refusal_lost,refusal_gained\n")
            + "m,FP16,,9,9,,\nm,Q4,FP16,5,9,3,0\n",
            "3 lost and 0 gained do not lead from 9 to 5",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_column(table, text, said):
    with pytest.raises(TableError) as error:
        analyse_table(read_table(table(text)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_named_columns_must_be_there(table, tmp_path):
    path = table(HEAD + "m,FP16,,2,9\n")
    with pytest.raises(TableError, match="no column 'rr' for refusal_rate; there are: model"):
        read_table(path, {"refusal_rate": "rr"})
    with pytest.raises(TableError, match="refusals is no field; there are: model"):
        read_table(path, {"refusals": "rr"})
    with pytest.raises(TableError, match="safety is no measure; there are: refusal"):
        read_table(path, sizes={"safety": 3})
    with pytest.raises(TableError, match="cannot be read: no such file"):
        read_table(tmp_path / "nothing.csv")
