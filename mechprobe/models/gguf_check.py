"""A GGUF file held against the folder it was written from: same tokens, same logits.

The measure is the file's own rounding. An F16 file stores matrices in float16, so the source is
taken with its matrices rounded to float16; llama.cpp rounds what enters a product to float16 as
well, so what that does to this very model, computed in the source's graph, is the yardstick. A
missing sliding window, another activation function or a lost head are orders of magnitude above
it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError, CheckpointError, GenerationError
from mechprobe.models.gguf_config import config_from_metadata
from mechprobe.models.gguf_fields import suspects
from mechprobe.models.gguf_file import GgufFile, read_gguf
from mechprobe.models.gguf_names import architecture_of_file, architecture_of_model
from mechprobe.models.llamacpp import logprobs_apart
from mechprobe.models.memory import give_back
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import read_table

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Array = np.ndarray[Any, np.dtype[np.float64]]
Ends = np.ndarray[Any, np.dtype[np.intp]]
_TOKENS: Final = 64
_BEYOND: Final = 32
_LONGEST: Final = 512
"""Tokens that every model may take."""
_WORK: Final = 600_000_000_000
"""Weights times tokens up to which a longer text is taken, for a window beyond that: of a large
model it would take longer than writing it. What llama.cpp's graphs do with windows that the text
does not reach is known from the configuration."""
_PAD: Final = 256
"""llama.cpp rounds a context up to this, and takes LongRoPE's long factors by the context: a text
within a smaller original context would meet others than in the source, so it goes beyond."""
_POSITIONS: Final = 8
_LIKELIEST: Final = 4096
_DENSE_LIMIT: Final = 0.1
"""Of the yardstick. The dense graph is the source's; float32 sums in another order are 2^-13 of
float16's rounding."""
_NATIVE_LIMIT: Final = 10.0
"""Of the yardstick: llama.cpp also rounds keys, values and tables of its activation functions."""
_FLOOR: Final = 1e-6
"""Of the logits' own spread, for models whose products are exact in float16."""
_DENSE_BYTES: Final = 4.5
"""Memory per weight of a float32 graph and its largest tensor once more."""
_HALF_MAX: Final = 65504.0
_UNDERFLOW: Final = -80.0
_NOT_COMPARED: Final = (ArchitectureError, GenerationError)
"""The file may be right, but this side cannot show it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a written file's logits are from its source's, as root mean squares in nats."""

    tokens: int
    """Length of the text."""
    rounding: float | None = None
    """What float16 products do to the source's own logits: the yardstick."""
    dense: float | None = None
    """The file in the transformers graph; None: not compared."""
    llama_cpp: float | None = None
    """The file in llama.cpp; None: not compared."""
    notes: tuple[str, ...] = ()
    """What was not compared, and why."""


def compare_with_source(path: Path, folder: Path, *, converted: bool = False) -> Comparison:
    """Compare a 16-bit GGUF's logits with those of the folder it was written from.

    One text of random ids, 32 tokens longer than a sliding window of up to 480 tokens, of small
    models of any; logits after the whole of it and after seven of its beginnings. A second text
    meets LongRoPE's long factors where the first meets the short ones.

    Args:
        path: The file.
        folder: The transformers folder.
        converted: llama.cpp's converter wrote it, which rounds some vectors as well (it adds 1 to
            Gemma's gains in the type that they are stored in).

    Returns:
        The distances over the longest text; what cannot be compared here is said in the notes.

    Raises:
        CheckpointError: The file is another model than the folder; the message names the fields of
            `config.json` that may explain it.
    """
    from mechprobe.models.hf import read_config

    file, config = read_gguf(path), read_config(folder, trust_remote_code=False)
    texts, notes = _texts(config.get_text_config(), file)
    if (lacking := _lacking_memory(folder)) is not None:
        return Comparison(len(texts[-1]), notes=(*notes, lacking))
    found = [_compared(file, folder, config, ids, converted) for ids in texts]
    said = dict.fromkeys((*notes, *(note for each in found for note in each.notes)))
    return replace(found[-1], notes=tuple(said))


def _compared(
    file: GgufFile, folder: Path, config: PretrainedConfig, ids: list[int], converted: bool
) -> Comparison:
    """`compare_with_source` over one text."""
    notes: tuple[str, ...] = ()
    ends = np.unique(np.linspace(len(ids) / _POSITIONS, len(ids), _POSITIONS).astype(int)) - 1
    exact, rounded = _source_logits(folder, config, ids, ends)
    if not np.isfinite(exact).all():
        raise CheckpointError(f"{folder}: the model's logits are not finite")
    floor = _FLOOR * _distance(exact, np.zeros_like(exact))
    found: dict[str, float] = {}
    dense_limit = _NATIVE_LIMIT if converted else _DENSE_LIMIT
    engines = {"dense": (_dense_logits, dense_limit), "llama.cpp": (_native_logits, _NATIVE_LIMIT)}
    for engine, (logits, limit) in engines.items():
        try:
            theirs = logits(file, ids, ends)
        except _NOT_COMPARED as error:
            notes = (*notes, f"{engine}: not compared: {_without(file.path, error)}")
            continue
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder}: as a GGUF it cannot be read: {_without(file.path, error)}"
                f"{_reasons(config, file)}"
            ) from error
        found[engine] = _distance(exact, theirs)
        allowed = limit * _distance(exact, _where(theirs, rounded)) + floor
        if not found[engine] <= allowed:
            raise CheckpointError(
                f"{folder}: the GGUF would be another model: {engine} is {found[engine]:.2g} (RMS "
                f"of logits over {len(ids)} tokens) from the source, and rounding to float16 "
                f"explains {allowed:.1g}{_reasons(config, file)}"
            )
    return Comparison(
        len(ids), _distance(exact, rounded), found.get("dense"), found.get("llama.cpp"), notes
    )


def _reasons(config: PretrainedConfig, file: GgufFile) -> str:
    """What in the configuration may be the cause."""
    fields: list[str] = []
    with suppress(CheckpointError):
        fields += suspects(config, architecture_of_model(config.model_type))
        architecture = architecture_of_file(file.path, file.architecture)
        fields += _rope_differences(config, config_from_metadata(file, architecture, {}))
    return f"; it may be {', '.join(fields)}" if fields else ""


def _rope_differences(source: PretrainedConfig, written: PretrainedConfig) -> list[str]:
    theirs = getattr(written, "rope_parameters", None) or {}
    return [
        f"rope_parameters.{field}: {value!r}"
        for field, value in (getattr(source, "rope_parameters", None) or {}).items()
        if isinstance(value, int | float) and theirs.get(field) != value
    ]


def _without(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")


def _lacking_memory(folder: Path) -> str | None:
    import psutil

    needed = int(
        _DENSE_BYTES * sum(e.size for e in read_table(weight_files(folder).files).values())
    )
    there = psutil.virtual_memory().available
    if needed <= there:
        return None
    return (
        f"not compared with its source: that takes {needed / 2**30:.1f} GiB of memory and "
        f"{there / 2**30:.1f} GiB are free"
    )


def _texts(config: PretrainedConfig, file: GgufFile) -> tuple[list[list[int]], tuple[str, ...]]:
    """One or two texts of random ids, ascending, and what they cannot show."""
    window = int(getattr(config, "sliding_window", None) or 0)
    notes: tuple[str, ...] = ()
    reach = max(_LONGEST, _WORK // sum(tensor.size for tensor in file.tensors.values()))
    length = max(_TOKENS, window + _BEYOND)
    if length > reach:
        length = _TOKENS
        notes = (f"the text of {length} tokens does not reach the sliding window of {window}",)
    original = _longrope_context(config)
    if length <= original < -(-(length + 1) // _PAD) * _PAD:
        length = original + _BEYOND
    longest = int(file.get("context_length", length + 1)) - 1
    lengths = [min(length, longest)]
    if lengths[0] <= original < longest:
        if original + _BEYOND <= reach:
            lengths.append(min(original + _BEYOND, longest))
        else:
            notes += (
                f"the text of {lengths[0]} tokens does not reach LongRoPE's long factors, which "
                f"begin past {original}",
            )
    vocabulary = min(config.vocab_size, len(file.metadata["tokenizer.ggml.tokens"]))
    drawn = np.random.default_rng(0).integers(0, vocabulary, size=lengths[-1]).tolist()
    return [drawn[:each] for each in lengths], notes


def _longrope_context(config: PretrainedConfig) -> int:
    """The length up to which LongRoPE takes its short factors; 0 for other ropes."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else 0
    )


def _source_logits(
    folder: Path, config: PretrainedConfig, ids: Sequence[int], ends: Ends
) -> tuple[Array, Array]:
    """With matrices rounded to float16: as they are, and with rounded products."""
    import torch

    from mechprobe.models.hf import load_plain
    from mechprobe.models.unpack import open_weights

    with open_weights(weight_files(folder).files) as (table, read):
        model = load_plain(folder, table, config, read, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    exact = _logits(model, ids, ends)
    with _float16_products(model):
        rounded = _logits(model, ids, ends)
    del model
    gc.collect()
    give_back()
    return exact, rounded


def _logits(model: PreTrainedModel, ids: Sequence[int], ends: Ends) -> Array:
    import torch

    with torch.no_grad():
        rows = model(torch.tensor([list(ids)])).logits[0, torch.from_numpy(ends)]
    logits: Array = rows.double().numpy()
    return logits


@contextmanager
def _float16_products(model: PreTrainedModel) -> Iterator[None]:
    """Round what enters each matrix product to float16 for the length of the block."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    def rounded(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].clamp(-_HALF_MAX, _HALF_MAX).half().float(), *args[1:])

    hooks = [
        module.register_forward_pre_hook(rounded)
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dense_logits(file: GgufFile, ids: Sequence[int], ends: Ends) -> Array:
    import torch

    from mechprobe.models.gguf_dense import load_gguf_dense

    model = load_gguf_dense(file.path, dtype=torch.float32, device="cpu")
    logits = _logits(model, ids, ends)
    del model
    gc.collect()
    give_back()
    return logits


def _native_logits(file: GgufFile, ids: Sequence[int], ends: Ends) -> Array:
    import torch

    beginnings = [ids[: int(end) + 1] for end in ends]
    found = logprobs_apart(
        file, beginnings, threads=torch.get_num_threads(), likeliest=_LIKELIEST
    ).astype(np.float64)
    # llama.cpp takes the logarithm of float32 probabilities: below this they are none.
    return np.where(found < _UNDERFLOW, np.nan, found)


def _where(theirs: Array, values: Array) -> Array:
    """`values` where `theirs` has numbers, NaN elsewhere."""
    width = min(theirs.shape[1], values.shape[1])
    return np.where(np.isfinite(theirs[:, :width]), values[:, :width], np.nan)


def _distance(left: Array, right: Array) -> float:
    """Root mean square of the difference between logits, over the numbers that both have.

    Each row's mean is taken away: log-probabilities are logits up to a constant. Infinite where a
    row has none.
    """
    width = min(left.shape[1], right.shape[1])
    gap = left[:, :width] - right[:, :width]
    if np.isnan(gap).all(axis=1).any():
        return math.inf
    gap -= np.nanmean(gap, axis=1, keepdims=True)
    return float(np.sqrt(np.nanmean(gap**2)))
