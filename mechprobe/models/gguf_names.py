"""Tensor names and layouts: what llama.cpp's files change about a transformers checkpoint.

Names come from the `gguf` package's own table. Layouts are ours, one pair of inverse functions per
change: rotary rows are interleaved differently (llama.cpp's `NORM` rope), Gemma's norm gains are
stored plus one, GPT-2's Conv1D matrices are transposed, GPT-NeoX's fused query, key and value are
grouped by kind and not by head. llama.cpp's graph is the judge of each (see the tests).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from mechprobe.errors import ArchitectureError

Array = np.ndarray[Any, np.dtype[np.float32]]
Direction = Literal["to_gguf", "from_gguf"]


@dataclass(frozen=True, slots=True)
class Heads:
    """What a layout change needs to know about the attention."""

    query: int
    key_value: int


def _to_interleaved(rows: Array, heads: int) -> Array:
    """Rotary halves side by side become neighbouring pairs: HF order to llama.cpp's NORM order."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _from_interleaved(rows: Array, heads: int) -> Array:
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _by_kind(rows: Array, heads: int) -> Array:
    """(head, kind, width) rows become (kind, head, width): GPT-NeoX's fused projection."""
    width = rows.shape[0] // heads // 3
    return rows.reshape(heads, 3, width, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _by_head(rows: Array, heads: int) -> Array:
    width = rows.shape[0] // heads // 3
    return rows.reshape(3, heads, width, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """One change of layout, for every GGUF tensor whose name matches."""

    pattern: str
    to_gguf: Callable[[Array, Heads], Array]
    from_gguf: Callable[[Array, Heads], Array]


_ROTARY: Final = (
    Layout(
        r"attn_q\.(weight|bias)$",
        lambda a, h: _to_interleaved(a, h.query),
        lambda a, h: _from_interleaved(a, h.query),
    ),
    Layout(
        r"attn_k\.(weight|bias)$",
        lambda a, h: _to_interleaved(a, h.key_value),
        lambda a, h: _from_interleaved(a, h.key_value),
    ),
)
_GAIN_PLUS_ONE: Final = (Layout(r"norm\.weight$", lambda a, h: a + 1, lambda a, h: a - 1),)
_CONV1D: Final = (
    Layout(
        r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$",
        lambda a, h: np.ascontiguousarray(a.T),
        lambda a, h: np.ascontiguousarray(a.T),
    ),
)
_FUSED_BY_KIND: Final = (
    Layout(
        r"attn_qkv\.(weight|bias)$",
        lambda a, h: _by_kind(a, h.query),
        lambda a, h: _by_head(a, h.query),
    ),
)


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """One of llama.cpp's architectures and the transformers graph that computes the same."""

    name: str
    """llama.cpp's name."""
    model_types: tuple[str, ...]
    """transformers' `model_type`s that convert to it; the first is the graph that reads it."""
    layouts: tuple[Layout, ...] = ()
    constants: tuple[str, ...] = ()
    """Tensors that llama.cpp reads and no parameter takes: they become part of the config or of a
    rotary buffer."""

    def name_map(self, layers: int) -> Callable[[str], str | None]:
        """Parameter name to GGUF name, None where llama.cpp has none."""
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        number = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES.get(a) == self.name)
        table = get_tensor_name_map(number, layers)

        def lookup(parameter: str) -> str | None:
            name: str | None = table.get_name(parameter, try_suffixes=(".weight", ".bias"))
            return name

        return lookup

    def constants_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that no parameter takes."""
        return tuple(name for name in names if name in self.constants)

    def convert(self, name: str, array: Array, heads: Heads, direction: Direction) -> Array:
        """Change the layout of one tensor.

        Args:
            name: GGUF name.
            array: float32, in torch's shape.
            heads: The attention's head counts.
            direction: `to_gguf` or `from_gguf`; the two are inverse.
        """
        for layout in self.layouts:
            if re.search(layout.pattern, name):
                array = getattr(layout, direction)(array, heads)
        return array


ARCHITECTURES: Final[tuple[GgufArchitecture, ...]] = (
    GgufArchitecture("llama", ("llama", "mistral"), _ROTARY, ("rope_freqs.weight",)),
    GgufArchitecture("qwen2", ("qwen2",)),
    GgufArchitecture("qwen3", ("qwen3",)),
    GgufArchitecture("phi2", ("phi",)),
    GgufArchitecture(
        "phi3", ("phi3",), (), ("rope_factors_long.weight", "rope_factors_short.weight")
    ),
    GgufArchitecture("gemma2", ("gemma2",), _GAIN_PLUS_ONE),
    GgufArchitecture("gemma3", ("gemma3_text",), _GAIN_PLUS_ONE),
    GgufArchitecture("olmo2", ("olmo2",)),
    GgufArchitecture("granite", ("granite",), _ROTARY, ("rope_freqs.weight",)),
    GgufArchitecture("smollm3", ("smollm3",), _ROTARY),
    GgufArchitecture("gptneox", ("gpt_neox",), _FUSED_BY_KIND),
    GgufArchitecture("gpt2", ("gpt2",), _CONV1D),
)


def _supported(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))


def architecture_of_file(path: object, name: str) -> GgufArchitecture:
    """The row of llama.cpp's architecture `name`.

    Raises:
        ArchitectureError: There is none; the message lists those that are.
    """
    row = next((a for a in ARCHITECTURES if a.name == name), None)
    if row is None:
        raise ArchitectureError(
            f"{path}: architecture {name!r} cannot be read densely; supported: "
            f"{_supported([a.name for a in ARCHITECTURES])}; native llama.cpp may run it"
        )
    return row


def architecture_of_model(model_type: str) -> GgufArchitecture:
    """The row that a transformers `model_type` converts to.

    Raises:
        ArchitectureError: There is none; the message lists those that are.
    """
    row = next((a for a in ARCHITECTURES if model_type in a.model_types), None)
    if row is None:
        known = [kind for a in ARCHITECTURES for kind in a.model_types]
        raise ArchitectureError(
            f"model_type {model_type!r} cannot be written as GGUF; supported: {_supported(known)}; "
            "for others use llama.cpp's convert_hf_to_gguf.py"
        )
    return row
