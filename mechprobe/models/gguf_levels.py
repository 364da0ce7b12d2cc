"""llama.cpp's quantization levels by name, as the `gguf` package lists its file types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

LADDER: Final = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
"""The levels of the published study. `F16` is the 16-bit GGUF, `FP16` the transformers folder."""

NEED_IMATRIX: Final = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S")
"""Levels that llama.cpp's quantizer refuses to write without an importance matrix."""


@cache
def level_numbers() -> Mapping[str, int]:
    """Map the name of each level to its `general.file_type`."""
    from gguf.constants import LlamaFileType

    return MappingProxyType(
        {
            kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(kind)
            for kind in LlamaFileType
            if kind is not LlamaFileType.GUESSED
        }
    )


def level_named(text: str) -> str | None:
    """Return the level that a user means, in llama.cpp's spelling, else None.

    As `llama-quantize` does, a K-quant without its size is the medium one: `q4_k` is `Q4_K_M`.
    """
    names = level_numbers()
    return next((each for each in (text.upper(), f"{text.upper()}_M") if each in names), None)


def level_of_number(number: int) -> str | None:
    """Return the level of a `general.file_type`, else None."""
    return next((name for name, each in level_numbers().items() if each == number), None)
