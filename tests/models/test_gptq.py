"""Zero points of GPTQ's format v1, where their writers disagree: next to a zero point of 0."""

import numpy as np
import pytest
import torch

from mechprobe.models.gptq import dequantize_gptq, unpack_zeros


def stored(bench, zeros, bits, *, borrow):
    """Subtract one from the whole word, as GPTQModel does, or from every field by itself."""
    if not borrow:
        return bench.pack_bits((zeros - 1) % 2**bits, bits)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    words = bench.pack_bits(zeros, bits).view(np.uint32).astype(np.int64)
    return ((words - ones) % 2**32).astype(np.uint32).view(np.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("form", "borrow"), [("v1", False), ("v1-words", True)])
def test_every_zero_point_survives_its_writer(bench, bits, form, borrow):
    zeros = np.random.default_rng(0).integers(0, 2**bits, (5, 64))
    assert (zeros == 0).any()
    words = torch.from_numpy(stored(bench, zeros, bits, borrow=borrow))
    assert np.array_equal(unpack_zeros(words, bits, 64, form).numpy(), zeros)


def test_without_zeros_the_two_agree(bench):
    zeros = np.random.default_rng(0).integers(1, 16, (5, 64))
    assert np.array_equal(
        stored(bench, zeros, 4, borrow=False), stored(bench, zeros, 4, borrow=True)
    )


def test_a_ragged_last_group_and_output(bench):
    """80 input features in groups of 32, 20 outputs: neither fills its words."""
    tensors = bench.random_gptq(
        np.random.default_rng(0), 20, 80, 3, 32, desc_act=True, symmetric=False, v1=False
    )
    parts = [tensors[name] for name in ("qweight", "qzeros", "scales", "g_idx")]
    found = dequantize_gptq(*map(torch.from_numpy, parts), 3, "v2").numpy()
    assert found.shape == (20, 80)
    assert np.array_equal(found, bench.gptq_dense(*parts, 3, False))


def test_chunks_change_nothing(bench, monkeypatch):
    tensors = bench.random_gptq(
        np.random.default_rng(0), 64, 96, 4, 32, desc_act=True, symmetric=False, v1=True
    )
    parts = [torch.from_numpy(tensors[name]) for name in ("qweight", "qzeros", "scales", "g_idx")]
    whole = dequantize_gptq(*parts, 4, "v1")
    monkeypatch.setattr("mechprobe.models.gptq.CHUNK", 96 * 7)
    assert torch.equal(dequantize_gptq(*parts, 4, "v1"), whole)
