import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechprobe.activations.batching import (
    groups,
    length_sorted,
    pad_batch,
    pad_token_id,
    padded_batches,
)
from mechprobe.models.rendering import EncodedPrompts


def encoded(*rows: tuple[int, ...]) -> EncodedPrompts:
    return EncodedPrompts(rows, tuple(map(str, rows)), tuple(() for _ in rows), 1, "raw")


def test_left_padding_by_hand():
    batch = pad_batch(encoded((5, 6, 7), (8,)), (0, 1), pad_id=99)
    assert batch.input_ids.tolist() == [[5, 6, 7], [99, 99, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.is_padding.tolist() == [[False] * 3, [True, True, False]]


def test_prefix_by_hand_positions_go_on_after_it_whatever_the_padding():
    batch = pad_batch(encoded((1, 2, 5, 6, 7), (1, 2, 8)), (1, 0), pad_id=99, prefix=2)
    assert batch.indices == (1, 0)
    assert batch.input_ids.tolist() == [[99, 99, 8], [5, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[2, 2, 2], [2, 3, 4]]
    assert batch.is_padding.tolist() == [[True, True, False], [False] * 3]


@settings(max_examples=60, deadline=None)
@given(
    own=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=12),
    k=st.integers(0, 5),
    size=st.integers(1, 5),
)
def test_every_prompt_comes_back_once_whole_and_at_its_positions(own, k, size):
    shared = tuple(range(100, 100 + k))
    prompts = encoded(*(shared + tuple(row) for row in own))
    seen: dict[int, list[int]] = {}
    widths = []
    for batch in padded_batches(prompts, size, pad_id=0, prefix=k):
        widths.append(batch.input_ids.shape[1])
        assert batch.attention_mask.shape == (len(batch), k + widths[-1])
        assert batch.attention_mask[:, :k].all()
        for row, index in enumerate(batch.indices):
            keep = ~batch.is_padding[row]
            assert index not in seen
            seen[index] = batch.input_ids[row][keep].tolist()
            positions = batch.position_ids[row][keep]
            assert positions.tolist() == list(range(k, len(prompts.ids[index])))
    assert seen == {i: list(row) for i, row in enumerate(own)}
    assert widths == sorted(widths, reverse=True)


def test_order_is_longest_first_and_stable():
    assert length_sorted([2, 5, 2, 7, 5]) == (3, 1, 4, 0, 2)
    assert groups((3, 1, 4, 0, 2), 2) == [(3, 1), (4, 0), (2,)]
    with pytest.raises(ValueError, match="at least one row"):
        groups((1, 2), 0)


def test_a_prompt_that_is_all_prefix_is_refused():
    with pytest.raises(ValueError, match="a token of its own"):
        pad_batch(encoded((1, 2), (1, 2, 3)), (0, 1), pad_id=0, prefix=2)


def test_pad_token_falls_back():
    class Tokenizer:
        pad_token_id = None
        eos_token_id = 7

    assert pad_token_id(Tokenizer()) == 7
    assert pad_token_id(object()) == 0


def test_batch_keeps_integers_on_the_asked_device():
    batch = next(padded_batches(encoded((1, 2)), 4, 0, torch.device("cpu")))
    assert {tensor.dtype for tensor in batch.model_inputs().values()} == {torch.int64}
