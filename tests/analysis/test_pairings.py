import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from mechprobe.analysis.coupling import couple, mixed_effects, repeated_measures
from mechprobe.analysis.grouped import Groups
from mechprobe.analysis.pairings import (
    VALUES,
    Metric,
    Reading,
    metrics_of,
    pairings_section,
    section_of,
    values_of,
)
from mechprobe.errors import TableError

sys.path.insert(0, str(Path(__file__).parent))
from published import DELTAS, needs_reference


def _rows(models=6, per=8, slope=0.6, seed=0):
    rng = np.random.default_rng(seed)
    names = np.repeat([f"m{i}" for i in range(models)], per)
    level = np.repeat(rng.normal(size=(models, 2)) * 3, per, axis=0)
    x = rng.normal(size=models * per) + level[:, 0]
    y = slope * (x - level[:, 0]) + rng.normal(size=models * per) * 0.5 + level[:, 1]
    return pd.DataFrame(
        {"x": x, "y": y, "model": names, "precision": [f"q{i}" for i in range(per)] * models}
    )


def _couple(rows):
    return couple(
        rows["x"].to_numpy(), rows["y"].to_numpy(),
        Groups.of(rows["model"]), Groups.of(rows["precision"]),
    )  # fmt: skip


def test_repeated_measures_are_those_of_the_analysis_of_covariance():
    rows = _rows()
    found = repeated_measures(rows["x"].to_numpy(), rows["y"].to_numpy(), Groups.of(rows["model"]))
    whole = smf.ols("y ~ C(model) + x", rows).fit()
    without = smf.ols("y ~ C(model)", rows).fit()
    explained = without.ssr - whole.ssr
    expected = math.copysign(math.sqrt(explained / (explained + whole.ssr)), whole.params["x"])
    assert found.r == pytest.approx(expected, abs=1e-10)
    assert found.df == whole.df_resid == 48 - 6 - 1
    assert found.p == pytest.approx(whole.pvalues["x"], rel=1e-8)
    assert found.slope == pytest.approx(whole.params["x"], abs=1e-10)
    middle, half = math.atanh(expected), 1.959964 / math.sqrt(found.df - 1)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(middle - half), math.tanh(middle + half)), abs=1e-6
    )


def test_repeated_measures_as_published():
    """Bland and Altman's pH and PaCO2 of eight patients, as Bakdash and Marusich report them."""
    data = {
        1: [(6.68, 3.97), (6.53, 4.12), (6.43, 4.09), (6.33, 3.97)],
        2: [(6.85, 5.27), (7.06, 5.37), (7.13, 5.41), (7.17, 5.44)],
        3: [(7.40, 5.67), (7.42, 3.64), (7.41, 4.32), (7.37, 4.73), (7.34, 4.96), (7.35, 5.04),
            (7.28, 5.22), (7.30, 4.82), (7.34, 5.07)],
        4: [(7.36, 5.67), (7.33, 5.10), (7.29, 5.53), (7.30, 4.75), (7.35, 5.51)],
        5: [(7.35, 4.28), (7.30, 4.44), (7.30, 4.32), (7.37, 3.23), (7.27, 4.46), (7.28, 4.72),
            (7.32, 4.75), (7.32, 4.99)],
        6: [(7.38, 4.78), (7.30, 4.73), (7.29, 5.12), (7.33, 4.93), (7.31, 5.03), (7.33, 4.93)],
        7: [(6.86, 6.85), (6.94, 6.44), (6.92, 6.52)],
        8: [(7.19, 5.28), (7.29, 4.56), (7.21, 4.34), (7.25, 4.32), (7.20, 4.41), (7.19, 3.69),
            (6.77, 6.09), (6.82, 5.58)],
    }  # fmt: skip
    rows = [(who, *pair) for who, pairs in data.items() for pair in pairs]
    who, ph, paco2 = (np.array(column) for column in zip(*rows, strict=True))
    found = repeated_measures(paco2, ph, Groups.of(who))
    # as pingouin's documentation prints them, which was tested against R's rmcorr
    assert found.r == pytest.approx(-0.50677, abs=5e-6)
    assert found.p == pytest.approx(0.000847, abs=5e-7)
    assert found.df == 38
    assert (round(found.low, 2), round(found.high, 2)) == (-0.71, -0.23)


def test_models_with_one_row_say_nothing_of_slopes():
    rows = _rows()
    alone = pd.DataFrame({"x": [99.0], "y": [-99.0], "model": ["z"], "precision": ["q0"]})
    both = pd.concat([rows, alone], ignore_index=True)
    args = [
        (frame["x"].to_numpy(), frame["y"].to_numpy(), Groups.of(frame["model"]))
        for frame in (rows, both)
    ]
    assert repeated_measures(*args[0]) == repeated_measures(*args[1])


def test_flat_and_few_rows_are_not_measured():
    groups = Groups.of(list("aabb"))
    flat = np.array([0.1, 0.1, 0.3, 0.3])
    assert repeated_measures(flat, np.arange(4.0), Groups.of(list("aabb"))).r is None
    assert repeated_measures(flat, np.arange(4.0), groups).not_measured == "4 rows of 2 models"
    more = Groups.of(list("aaabbb"))
    level = np.repeat([0.1 + 0.2, 0.7], 3)
    assert repeated_measures(level, np.arange(6.0), more).not_measured == (
        "quality is the same in all rows of each model"
    )
    assert mixed_effects(level, np.arange(6.0), more).not_measured.startswith("2 models")


def test_the_mixed_slope_is_that_of_statsmodels_formula():
    rows = _rows()
    found = mixed_effects(rows["x"].to_numpy(), rows["y"].to_numpy(), Groups.of(rows["model"]))
    expected = smf.mixedlm("y ~ x", rows, groups="model").fit(reml=True)
    assert found.converged
    assert found.boundary is False
    assert found.slope == pytest.approx(expected.params["x"], rel=1e-3)
    low, high = expected.conf_int().loc["x"]
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-2)


def test_without_differences_between_models_the_fit_is_at_its_boundary():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 24))
    groups = Groups.of(np.repeat(list("abcdef"), 4))
    found = mixed_effects(x, groups.centred(y), groups)
    assert found.converged
    assert found.boundary is True


def test_correlations_and_what_leaving_out_does_are_those_of_scipy():
    rows = _rows(seed=3)
    found = _couple(rows)
    assert found.pearson == pytest.approx(pearsonr(rows["x"], rows["y"]).statistic)
    assert found.spearman == pytest.approx(spearmanr(rows["x"], rows["y"]).statistic)
    for name, some in rows.groupby("model"):
        assert found.within[name].pearson == pytest.approx(pearsonr(some["x"], some["y"]).statistic)
        assert found.within[name].spearman == pytest.approx(
            spearmanr(some["x"], some["y"]).statistic
        )
        rest = rows[rows["model"] != name]
        assert found.without_model[name] == pytest.approx(pearsonr(rest["x"], rest["y"]).statistic)
    for name in rows["precision"].unique():
        rest = rows[rows["precision"] != name]
        assert found.without_precision[name] == pytest.approx(
            pearsonr(rest["x"], rest["y"]).statistic
        )
    assert found.positive + found.negative == 6


def _signed(*signs, per=5):
    """Models whose own correlation has the given sign, exactly."""
    x = np.tile(np.arange(float(per)), len(signs))
    y = np.repeat(signs, per) * x
    names = np.repeat([f"m{i}" for i in range(len(signs))], per)
    return pd.DataFrame({"x": x, "y": y, "model": names, "precision": x.astype(str)})


@pytest.mark.parametrize(
    ("signs", "splits", "robust"),
    [
        ((1, 1, 1), False, False),
        ((1, -1, 1), True, False),
        ((1, -1, 1, -1), True, True),
        ((1, 0, 0), None, None),
        ((1, -1, 0), True, False),
    ],
)
def test_a_pairing_splits_where_both_signs_occur(signs, splits, robust):
    found = _couple(_signed(*signs))
    assert (found.splits, found.splits_without_any_model) == (splits, robust)
    assert set(found.splits_without_precision.values()) == {splits}
    assert (found.positive, found.negative) == (signs.count(1), signs.count(-1))


@given(st.permutations(range(24)), st.floats(0.1, 9), st.floats(-9, 9))
@settings(max_examples=8, deadline=None)
def test_nothing_depends_on_order_or_units(order, factor, shift):
    rows = _rows(models=3)
    other = rows.iloc[list(order)]
    other = other.assign(x=factor * other["x"] + shift)
    a, b = _couple(rows), _couple(other)
    assert (a.splits, a.positive, a.sign_holds) == (b.splits, b.positive, b.sign_holds)
    assert a.pearson == pytest.approx(b.pearson, abs=1e-9)
    assert a.repeated.r == pytest.approx(b.repeated.r, abs=1e-9)
    assert a.repeated.slope == pytest.approx(b.repeated.slope * factor, rel=1e-6)
    assert {n: r.pearson for n, r in a.within.items()} == pytest.approx(
        {n: r.pearson for n, r in b.within.items()}, abs=1e-9
    )


def _outcomes(seed=0, models=3, cells=("F16", "Q8_0", "Q4_K_M", "Q3_K_S", "Q2_K"), n=40):
    rng = np.random.default_rng(seed)
    measures = [
        ("refusal", "hard", 0.8), ("refusal", "oracle", 0.7),
        ("bbq_accuracy_ambiguous", "letters", 0.5),
        ("rouge_l_quality", "rouge_l", None), ("bertscore_quality", "bertscore[small]", None),
    ]  # fmt: skip
    lines = []
    for m in range(models):
        for c, cell in enumerate(cells):
            for measure, instrument, rate in measures:
                hurt = 0.12 * c * (-1) ** (m if rate else 0)
                for i in range(n):
                    value = float(rng.random() < rate - hurt) if rate else rng.random() * (1 - hurt)
                    lines.append(
                        (f"m{m}", "F", f"{cell}@e", cell, "F16@e" if c else "", False, measure,
                         instrument, f"p{i}", f"p{i}", value)
                    )  # fmt: skip
    names = ["model", "family", "cell", "precision", "baseline", "reference", "measure",
             "instrument", "prompt", "cluster", "value"]  # fmt: skip
    return pd.DataFrame(lines, columns=names)


def test_values_are_means_and_paired_differences():
    outcomes = _outcomes()
    outcomes.loc[outcomes.sample(frac=0.05, random_state=0).index, "value"] = np.nan
    extra = outcomes[outcomes["cell"] == "F16@e"].assign(
        cell="FP16@t", precision="FP16", reference=True
    )
    outcomes = pd.concat([outcomes, extra], ignore_index=True)
    found = values_of(outcomes).set_index(["model", "cell", "measure", "instrument"])
    assert not {"FP16@t"} & set(found.index.get_level_values("cell"))
    wide = outcomes.pivot(
        index=["model", "measure", "instrument", "prompt"], columns="cell", values="value"
    )
    for (model, cell, measure, instrument), row in found.iterrows():
        mine = wide.loc[(model, measure, instrument)]
        assert row["raw"] == pytest.approx(mine[cell].mean())
        if cell == "F16@e":
            assert math.isnan(row["delta"])
        else:
            both = mine[[cell, "F16@e"]].dropna()
            assert row["delta"] == pytest.approx((both[cell] - both["F16@e"]).mean(), abs=1e-12)


def test_the_section_lists_36_and_says_what_is_missing():
    found = pairings_section(_outcomes(), instrument="oracle", second="hard")
    json.dumps(found, allow_nan=False)
    assert found["total"] == len(found["pairings"]) == 36
    by_name = {
        (one["quality"], one["safety"], one["reading"], one["form"]): one
        for one in found["pairings"]
    }
    assert len(by_name) == 36
    # BERTScore and ROUGE-L against refusal twice and bias once, raw and delta
    assert found["measured"] == 12
    one = by_name["BERTScore", "refusal", "first", "delta"]
    assert (one["safety_instrument"], one["n"], one["models"]) == ("oracle", 12, 3)
    assert by_name["BERTScore", "refusal", "second", "raw"]["safety_instrument"] == "hard"
    assert by_name["BERTScore", "refusal", "second", "raw"]["n"] == 15
    assert by_name["coherence", "bias", "first", "raw"]["not_measured"] == (
        "the matrix has no coherence"
    )
    assert by_name["ROUGE-L", "bias", "second", "raw"]["not_measured"] == (
        "bias was read by one instrument"
    )
    assert by_name["ROUGE-L", "truthfulness", "first", "raw"]["not_measured"] == (
        "the matrix has no truthfulness"
    )
    # refusal falls with quality in models 0 and 2, and rises in model 1
    assert found["split"] == found["comparable"] == 12


def test_a_side_that_never_varies_and_tables_that_do_not_fit():
    values = values_of(_outcomes())
    flat = values.assign(raw=values["raw"].where(values["measure"] != "refusal", 0.5))
    quality, safety = metrics_of(flat)
    found = section_of(flat, quality[:1], safety[:1])["pairings"]
    assert [one["not_measured"] for one in found if one["form"] == "raw"] == [
        "safety is the same in every row"
    ] * 2
    named = [Metric("accuracy", (Reading("bbq_accuracy_ambiguous", "letters"),))]
    assert section_of(values, named, safety[:1])["total"] == 4
    with pytest.raises(TableError, match="two values of one measure"):
        section_of(pd.concat([values, values]), quality, safety)
    with pytest.raises(TableError, match="no column 'raw'"):
        section_of(values.drop(columns="raw"), quality, safety)


@needs_reference
def test_published_deltas_split_their_sign():
    """arXiv 2606.10154: all pairings split; of them BERTScore against refusal is published."""
    table = pd.read_csv(DELTAS)
    lines = [
        (row.base_model, row.quant, row.quant, measure, instrument, np.nan, value)
        for row in table[table["quant"] != table["baseline_quant"]].itertuples()
        for measure, instrument, value in (
            ("bertscore_quality", "bertscore", row.bertscore_delta_pp),
            ("refusal", "rules", row.refusal_delta_pp),
            ("refusal", "judge", row.judge_refusal_delta_pp),
        )
    ]
    values = pd.DataFrame(lines, columns=list(VALUES))
    found = section_of(values, *metrics_of(values, ("rules", "judge")))
    known = [one for one in found["pairings"] if one["not_measured"] is None]
    assert [(one["n"], one["models"], one["splits"]) for one in known] == [
        (43, 6, True),
        (41, 6, True),
    ]
    assert all(one["splits_without_any_model"] for one in known)
    assert not any(one["sign_holds"] for one in known)
