"""The selection rule against a brute force written from its definition, and against the published
algorithm."""

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechprobe.errors import MechprobeError, SpecError
from mechprobe.probes.refusal_direction import select_direction
from mechprobe.probes.selection import NoCandidateError, dropped

# few distinct values, those of the thresholds among them, so that ties and edges are common
SCORE = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1e-300, -1e-300, 0.1, 0.1 + 1e-16, 0.2, 3.0])
NUMBER = st.one_of(SCORE, st.floats(allow_nan=True, allow_infinity=True))


@st.composite
def tables(draw):
    n_layers = draw(st.integers(1, 11))
    n_positions = draw(st.integers(1, 4))
    rows = [
        (position, layer, draw(NUMBER), draw(NUMBER), draw(NUMBER))
        for position in range(-n_positions, 0)
        for layer in range(n_layers)
    ]
    order = draw(st.permutations(range(len(rows))))
    kept = order[: draw(st.integers(0, len(order)))] if draw(st.booleans()) else order
    columns = ["position", "layer", "bypass", "induce", "kl"]
    return pd.DataFrame([rows[i] for i in kept], columns=columns), n_layers


def brute_force(table, n_layers):
    """From the definition: walk the places in the order of ties, keep the first that is lowest."""
    rows = {(int(r.position), int(r.layer)): r for r in table.itertuples()}
    best = None
    for position in range(-20, 0):
        for layer in range(n_layers):
            row = rows.get((position, layer))
            if row is None or any(map(math.isnan, (row.bypass, row.induce, row.kl))):
                continue
            late = 10 * layer >= 10 * (8 * n_layers // 10)  # in integers
            if late or row.kl > 0.1 or row.induce < 0:
                continue
            if best is None or row.bypass < best[0]:
                best = (row.bypass, position, layer)
    return None if best is None else best[1:]


def published(table, n_layers):
    """The published code's way: a list of kept triples, sorted by minus the score, descending."""
    kept = []
    for row in table.sort_values(["position", "layer"]).itertuples():
        scores = (row.bypass, row.induce, row.kl)
        drop = (
            any(math.isnan(score) for score in scores)
            or row.layer >= int(n_layers * (1.0 - 0.2))
            or row.kl > 0.1
            or row.induce < 0.0
        )
        if not drop:
            kept.append((-row.bypass, row.position, row.layer))
    ordered = sorted(kept, key=lambda triple: triple[0], reverse=True)
    return tuple(map(int, ordered[0][1:])) if ordered else None


@settings(max_examples=400, deadline=None)
@given(tables())
def test_it_is_what_the_definition_and_the_published_algorithm_say(drawn):
    table, n_layers = drawn
    expected = brute_force(table, n_layers)
    assert expected == published(table, n_layers)
    if expected is None:
        with pytest.raises(MechprobeError, match="candidates were dropped"):
            select_direction(table, n_layers)
        return
    found = select_direction(table, n_layers)
    assert (found.position, found.layer) == expected
    assert sum(dropped(found.table).values()) + (found.table["dropped"] == "").sum() == len(table)


@settings(max_examples=100, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(drawn, random):
    table, n_layers = drawn
    order = list(range(len(table)))
    random.shuffle(order)
    answers = []
    for rows in (table, table.iloc[order]):
        try:
            found = select_direction(rows, n_layers)
            answers.append((found.position, found.layer))
        except NoCandidateError:
            answers.append(None)
    assert answers[0] == answers[1]


def _one(**values):
    row = {"position": -1, "layer": 0, "bypass": 0.0, "induce": 1.0, "kl": 0.0} | values
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bypass": math.nan, "kl": 5.0}, "no number among the scores: 1"),
        ({"layer": 8, "kl": 5.0}, "layer 8 or later: 1"),
        ({"kl": 0.1000001, "induce": -1.0}, "KL above 0.1: 1"),
        ({"induce": -1e-9}, "induce below 0: 1"),
    ],
)
def test_the_first_filter_that_takes_a_candidate_is_named(values, words):
    with pytest.raises(NoCandidateError, match=f"all 1 candidates were dropped .{words}.;"):
        select_direction(_one(**values), 10)


def test_the_thresholds_themselves_are_kept():
    assert select_direction(_one(kl=0.1, induce=0.0, layer=7), 10).layer == 7


def test_ties_go_to_the_first_position_then_the_first_layer():
    rows = [(-1, 0), (-2, 3), (-2, 1), (-3, 5)]
    table = pd.concat([_one(position=p, layer=layer, bypass=-1.0) for p, layer in rows])
    table.loc[table["position"] == -3, "kl"] = 1.0
    found = select_direction(table, 10)
    assert (found.position, found.layer) == (-2, 1)


def test_the_table_itself_is_left_as_it_was_and_further_columns_are_kept():
    table = pd.concat([_one(note="a"), _one(position=-2, note="b")], ignore_index=True)
    before = table.copy()
    found = select_direction(table, 4)
    pd.testing.assert_frame_equal(table, before)
    assert found.table["note"].tolist() == ["b", "a"]


def test_missing_numbers_of_every_kind_are_nan():
    table = _one().astype(object)
    table.loc[0, "induce"] = None
    with pytest.raises(NoCandidateError, match="no number"):
        select_direction(table, 4)
    with pytest.raises(NoCandidateError, match="no number"):
        select_direction(_one().assign(kl=pd.array([None], dtype="Float64")), 4)


def test_what_it_refuses():
    with pytest.raises(SpecError, match=r"lack the columns \['kl'\]"):
        select_direction(_one().drop(columns="kl"), 4)
    with pytest.raises(NoCandidateError, match=r"all 0 candidates were dropped \(none\)"):
        select_direction(_one().iloc[:0], 4)


def test_int_of_the_kept_depth_is_exact_for_every_model():
    for n_layers in range(1, 200):
        assert int(0.8 * n_layers) == 8 * n_layers // 10 == int(n_layers * (1.0 - 0.2))
