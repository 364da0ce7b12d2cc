"""A baseline that is itself quantized is said to be one."""

import pytest

from mechprobe.models.cell import TRANSFORMERS_PRECISIONS
from mechprobe.models.gguf_levels import LADDER
from mechprobe.probes.baseline import baseline_warnings

PLAIN = {"FP32", "BF16", "FP16", "F16"}
LABELS = {*TRANSFORMERS_PRECISIONS, *LADDER, "Q4_0", "IQ4_XS", "W4A16"}


@pytest.mark.parametrize("label", sorted(PLAIN | {"F32", "FP64"}))
def test_an_unquantized_baseline_is_as_it_should_be(label):
    assert baseline_warnings(label) == ()


@pytest.mark.parametrize("label", sorted(LABELS - PLAIN))
def test_a_quantized_one_is_named(label):
    (line,) = baseline_warnings(label)
    assert f"({label})" in line
    assert "\n" not in line


def test_no_baseline_is_no_warning():
    assert baseline_warnings(None) == ()
