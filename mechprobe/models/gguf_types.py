"""Types of the GGUF metadata that mechprobe reads: those of llama.cpp, which refuses others too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_Size = Annotated[int, Field(ge=1, lt=1 << 31)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Known(BaseModel):
    """Keys that are the same in every architecture."""

    model_config = ConfigDict(strict=True, extra="ignore")
    architecture: str | None = Field(None, alias="general.architecture")
    file_type: _Count | None = Field(None, alias="general.file_type")
    alignment: Annotated[int, Field(ge=1, le=1 << 20)] = Field(32, alias="general.alignment")
    parts: _Count = Field(0, alias="split.count")
    model: str | None = Field(None, alias="tokenizer.ggml.model")
    pre: str | None = Field(None, alias="tokenizer.ggml.pre")
    tokens: list[str] | None = Field(None, alias="tokenizer.ggml.tokens")
    merges: list[str] | None = Field(None, alias="tokenizer.ggml.merges")
    scores: list[float] | None = Field(None, alias="tokenizer.ggml.scores")
    kinds: list[int] | None = Field(None, alias="tokenizer.ggml.token_type")
    bos: _Count | None = Field(None, alias="tokenizer.ggml.bos_token_id")
    eos: _Count | None = Field(None, alias="tokenizer.ggml.eos_token_id")
    pad: _Count | None = Field(None, alias="tokenizer.ggml.padding_token_id")
    unknown: _Count | None = Field(None, alias="tokenizer.ggml.unknown_token_id")
    add_bos: bool | None = Field(None, alias="tokenizer.ggml.add_bos_token")
    add_eos: bool | None = Field(None, alias="tokenizer.ggml.add_eos_token")
    add_space: bool | None = Field(None, alias="tokenizer.ggml.add_space_prefix")
    template: str | None = Field(None, alias="tokenizer.chat_template")


_KINDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(
        ("block_count", "context_length", "embedding_length", "vocab_size",
         "attention.key_length", "attention.value_length", "rope.dimension_count",
         "rope.scaling.original_context_length"), _Size,
    ),
    **dict.fromkeys(
        ("feed_forward_length", "attention.head_count", "attention.head_count_kv"),
        _Size | list[_Count],
    ),
    **dict.fromkeys(("attention.sliding_window", "expert_count", "expert_used_count"), _Count),
    "attention.sliding_window_pattern": _Count | list[_Count | bool],
    "attention.causal": bool,
    "use_parallel_residual": bool,
    "rope.scaling.finetuned": bool,
    "rope.scaling.type": str,
}  # fmt: skip
_NUMBERS: Final = ("_epsilon", "freq_base", "freq_base_swa", "factor", "softcapping", "scale",
                   "yarn_log_multiplier", "yarn_beta_fast", "yarn_beta_slow")  # fmt: skip


def wrong_metadata(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with the metadata of a file, None where nothing is.

    Args:
        metadata: All keys of the file.
    """
    try:
        known = _Known.model_validate(dict(metadata))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{first['loc'][0]}: {first['msg'].lower()}"
    begin = f"{known.architecture}."
    for key, value in metadata.items():
        if key.startswith(begin) and (said := _wrong(key.removeprefix(begin), value)):
            return f"{key}: {said}"
    return _wrong_vocabulary(known)


def _wrong(key: str, value: Any) -> str | None:
    kind = _KINDS.get(key, _Number if key.endswith(_NUMBERS) else Any)
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()[0]["msg"].lower()
    return None


def _wrong_vocabulary(known: _Known) -> str | None:
    if known.tokens is None:
        return None
    size = len(known.tokens)
    for name, values in (("scores", known.scores), ("token_type", known.kinds)):
        if values and len(values) != size:
            return f"tokenizer.ggml.{name}: {len(values)} for {size} tokens"
    for name, number in (("bos", known.bos), ("eos", known.eos), ("padding", known.pad),
                         ("unknown", known.unknown)):  # fmt: skip
        if number is not None and number >= size:
            return f"tokenizer.ggml.{name}_token_id: {number} of {size} tokens"
    return None
