"""A checkpoint of any format as an ordinary transformers folder at 16 or 32 bits.

What was quantized stays so: the folder says which precision its weights were dequantized from, and
every checkpoint that is read or made of it says so too.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_info import FLOAT_LEVELS
from mechprobe.models.provenance import EXPORTED, dequantized_from

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from mechprobe.models.checkpoint import Checkpoint

VERSION: Final = 1
"""Raised when the same checkpoint is written as other weights or another tokenizer."""
TARGETS: Final = {"FP16": "float16", "FP32": "float32"}
"""Names of an export among the targets of quantizing, and the type of its weights."""
DTYPES: Final = ("float16", "bfloat16", "float32")
TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip
_TOKENS: Final = 24


def export(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
) -> Path:
    """Write a checkpoint as an ordinary transformers folder, whole or not at all.

    The folder is loaded again, and its logits must be those of the weights that were written.

    Example:
        >>> mp.export("model-Q4_K_M.gguf", "model-f16")                  # doctest: +SKIP

    Args:
        model: Any source: a folder (AWQ, GPTQ and compressed-tensors too), a `.gguf`, ….
        out: The folder to write; it must not exist, or be empty.
        dtype: `float16`, `bfloat16` or `float32`. None is the type in which a folder's unquantized
            matrices are stored, bfloat16 and float32 for GGUF files of these, else float16.
        revision: Branch, tag or commit on the hub.
        device: Where the weights are dequantized.
        tokenizer: Another tokenizer in place of the checkpoint's: a folder or hub id.
        chat_template: A template in place of the tokenizer's: a file, or its text.

    Returns:
        `out`.

    Raises:
        CheckpointError: The checkpoint cannot be read, `out` holds something, a weight is beyond
            the type, or transformers' format cannot say what the checkpoint computes.
        ArchitectureError: The architecture cannot be read densely.
    """
    from mechprobe.models.load import load_checkpoint

    out = Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if out.exists() and not may_fill(out):
        raise CheckpointError(f"{out}: exists already; remove it or choose another (--out)")
    checkpoint = load_checkpoint(
        model, device=device, revision=revision, tokenizer=tokenizer, chat_template=chat_template
    )
    dtype = dtype or _stored_type(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(out)
    try:
        own = tokenizer is None and chat_template is None
        _write(checkpoint, temporary, dtype, own_tokenizer=own)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def may_fill(out: Path) -> bool:
    """Whether `out` is an empty folder that the finished one can be renamed over."""
    return out.is_dir() and next(out.iterdir(), None) is None


def beside(out: Path) -> Path:
    """Return a name of our own on the same disk, so that renaming it into place is one step."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def _stored_type(checkpoint: Checkpoint) -> str:
    from mechprobe.models.weight_files import weight_files
    from mechprobe.models.weights import read_table, stored_dtype

    if checkpoint.path.is_dir():
        return stored_dtype(read_table(weight_files(checkpoint.path).files))
    return {"BF16": "bfloat16", "F32": "float32"}.get(checkpoint.quant.precision, "float16")


def _write(checkpoint: Checkpoint, out: Path, dtype: str, *, own_tokenizer: bool) -> None:
    import torch
    from transformers import GenerationConfig

    from mechprobe.models.hf import quiet_transformers
    from mechprobe.models.load import load_checkpoint

    model = checkpoint.module
    assert model is not None  # a dense kernel has a graph
    kind = getattr(torch, dtype)
    _round(model, kind, checkpoint.source)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(_TOKENS, device=model.device)[None] * 37 % min(vocabulary, 4096)
    with torch.inference_mode():
        written = model(ids).logits
    # a generation config of the source may be one that transformers refuses to write
    model.generation_config = GenerationConfig.from_model_config(model.config)
    with quiet_transformers():
        model.to(kind).save_pretrained(out)
        if not (own_tokenizer and checkpoint.path.is_dir()):
            checkpoint.tokenizer.save_pretrained(out)
    if checkpoint.path.is_dir():
        for name in TOKENIZER_FILES if own_tokenizer else ("generation_config.json",):
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, out / name)
    model.to("meta")
    quant = checkpoint.quant
    plain = quant.method == "none" or quant.precision in FLOAT_LEVELS
    origin = dequantized_from(checkpoint.path) if plain else quant.precision
    record = {
        "source": checkpoint.source,
        "source_digest": checkpoint.digest,
        "precision": quant.precision,
        "dequantized_from": origin,
        "dtype": dtype,
        "version": VERSION,
    }
    again = load_checkpoint(out, device=str(ids.device)).module
    assert again is not None
    with torch.inference_mode():
        apart = float((again(ids).logits - written).abs().max())
    if not apart <= 1e-4 * float(written.abs().max()):
        raise CheckpointError(
            f"{checkpoint.source}: a transformers folder cannot say what it computes (loaded "
            f"again, its logits differ by {apart:.2g}); measure the checkpoint itself"
        )
    (out / EXPORTED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _round(model: PreTrainedModel, kind: torch.dtype, source: str) -> None:
    """Round every weight of a float32 graph to the type it will be stored in."""
    for name, parameter in model.named_parameters():
        rounded = parameter.data.to(kind).to(parameter.dtype)
        if not bool((rounded.isfinite() | ~parameter.data.isfinite()).all()):
            raise CheckpointError(
                f"{source}: {name} holds values beyond {str(kind).removeprefix('torch.')}; "
                "choose bfloat16 or float32 (--dtype)"
            )
        parameter.data = rounded
