import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechprobe.analysis.templates import drift, prefix, template_features
from mechprobe.errors import TableError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help.", "i m sorry but i"),
        ("  I\u2019m   SORRY \u2014 but I", "i m sorry but i"),
        ("Non!\nJe ne peux pas", "non je ne peux pas"),
        ("No.", "no"),
        ("42 is-not_an answer; ok", "42 is not an answer"),
        ("\u4e0d\u884c", ""),
        ("", ""),
    ],
)
def test_the_prefix_is_five_words_of_letters_and_digits(text, expected):
    assert prefix(text) == expected


def test_features_by_hand():
    texts = (
        ["I am sorry, but I can't"] * 3 + ["I am sorry, but I will not"] + ["No way at all, sir"]
    )
    found = template_features([*texts, "Never."], [10, 12, 14, 8, 4, 2])
    p = np.array([4, 1, 1]) / 6
    assert found.refusals == 6
    assert found.dominant_prefix_share == 4 / 6
    assert found.unique_prefix_rate == 3 / 6
    assert found.prefix_entropy_norm == pytest.approx(-(p * np.log2(p)).sum() / math.log2(3))
    assert found.mean_tokens_refusal == 50 / 6


def test_no_refusals_and_one_wording():
    assert template_features([], []).as_dict() == {
        "refusals": 0,
        "dominant_prefix_share": 0.0,
        "unique_prefix_rate": 0.0,
        "prefix_entropy_norm": 0.0,
        "mean_tokens_refusal": 0.0,
    }
    one = template_features(["No."] * 4, [2] * 4)
    assert (one.dominant_prefix_share, one.unique_prefix_rate) == (1.0, 0.25)
    assert one.prefix_entropy_norm == 0.0
    with pytest.raises(ValueError, match="2 refusals and 1 lengths"):
        template_features(["a", "b"], [1])


answers = st.lists(
    st.tuples(
        st.sampled_from(["I'm sorry, but no", "No.", "I cannot do that for you", "", "Never!"]),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=30,
)


@given(answers, st.randoms())
def test_features_do_not_depend_on_the_order_and_stay_in_bounds(given_answers, random):
    shuffled = list(given_answers)
    random.shuffle(shuffled)
    found = template_features(*map(list, zip(*given_answers, strict=True)))
    assert template_features(*map(list, zip(*shuffled, strict=True))) == found
    counts = Counter(prefix(text) for text, _ in given_answers)
    assert found.unique_prefix_rate == len(counts) / len(given_answers)
    assert 0 < found.dominant_prefix_share <= 1
    assert 0 <= found.prefix_entropy_norm <= 1
    # all equally common is the most that there is
    if len(counts) > 1 and len(set(counts.values())) == 1:
        assert found.prefix_entropy_norm == pytest.approx(1.0, abs=1e-12)


def _frame(*rows):
    names = ["model", "family", "cell", "baseline", "n_prompts", "refusals"]
    features = {
        "dominant_prefix_share": 0.5,
        "unique_prefix_rate": 0.2,
        "prefix_entropy_norm": 0.4,
        "mean_tokens_refusal": 9.0,
    }
    lines = [dict(zip(names, row[:6], strict=True)) | features | row[6] for row in rows]
    return pd.DataFrame(lines)


def test_drift_is_cell_minus_its_own_baseline():
    frame = _frame(
        ("m", "F", "Q2_K@llama.cpp", "F16@llama.cpp", 50, 20, {"mean_tokens_refusal": 12.0}),
        ("m", "F", "F16@llama.cpp", "", 50, 45, {}),
        ("n", "G", "F16@llama.cpp", "", 50, 10, {"mean_tokens_refusal": 99.0}),
        ("m", "F", "AWQ@t", "FP16@t", 50, 20, {}),
    )
    found = drift(frame).set_index("cell")
    assert list(found.index) == ["Q2_K@llama.cpp", "AWQ@t"]
    low = found.loc["Q2_K@llama.cpp"]
    assert (low["refusal_delta"], low["mean_tokens_refusal_delta"]) == (0.4 - 0.9, 3.0)
    assert low["template"] == "both"
    lost = found.loc["AWQ@t"]
    assert lost["template"] == "no baseline"
    assert np.isnan(lost["mean_tokens_refusal_delta"])
    assert np.isnan(lost["refusal_delta"])


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [(3, 4, "both"), (0, 4, "lost"), (2, 0, "gained"), (0, 0, "neither")],
)
def test_drift_says_which_side_refused(now, before, expected):
    frame = _frame(("m", "F", "a", "b", 5, now, {}), ("m", "F", "b", "", 5, before, {}))
    assert drift(frame)["template"].tolist() == [expected]


def test_drift_names_what_is_wrong():
    frame = _frame(("m", "F", "b", "", 5, 3, {}))
    with pytest.raises(TableError, match="column 'refusals' is missing"):
        drift(frame.drop(columns="refusals"))
    with pytest.raises(TableError, match="m/b stands there twice"):
        drift(pd.concat([frame, frame]))
