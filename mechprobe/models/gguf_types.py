"""Types of the GGUF metadata that mechprobe reads: those of llama.cpp, which refuses others too.

The vocabulary's are checked where it is read; see `gguf_vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mechprobe.models.gguf_names import ARCHITECTURES

_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_Size = Annotated[int, Field(ge=1, lt=1 << 31)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Known(BaseModel):
    """Keys that are the same in every architecture."""

    model_config = ConfigDict(strict=True, extra="ignore")
    architecture: str | None = Field(None, alias="general.architecture")
    file_type: _Count | None = Field(None, alias="general.file_type")
    alignment: int = Field(32, alias="general.alignment")
    parts: _Count = Field(0, alias="split.count")


_BY_LAYER: Final = (
    "feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count",
)  # fmt: skip
"""One number, or one for each layer; 0 where there is none (Mamba, RWKV)."""
_KINDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(
        ("block_count", "context_length", "embedding_length", "vocab_size",
         "attention.key_length", "attention.value_length", "rope.dimension_count",
         "rope.scaling.original_context_length"), _Size,
    ),
    **dict.fromkeys(_BY_LAYER, _Count | list[_Count]),
    **dict.fromkeys(("attention.sliding_window", "expert_count"), _Count),
    "attention.sliding_window_pattern": _Count | list[_Count | bool],
    "attention.causal": bool,
    "use_parallel_residual": bool,
    "rope.scaling.finetuned": bool,
    "rope.scaling.type": str,
}  # fmt: skip
_DENSE_KINDS: Final[Mapping[str, Any]] = {
    **_KINDS, **dict.fromkeys(_BY_LAYER[:3], _Size | list[_Size]),
}  # fmt: skip
"""The same of architectures that the dense graph knows, all of which attend in every layer."""
_DENSE: Final = frozenset(architecture.name for architecture in ARCHITECTURES)
_NUMBERS: Final = ("_epsilon", "freq_base", "freq_base_swa", "factor", "softcapping",
                   "attention.scale", "embedding_scale", "residual_scale", "logit_scale",
                   "scale_linear", "yarn_log_multiplier", "yarn_beta_fast",
                   "yarn_beta_slow")  # fmt: skip


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
    kinds = _DENSE_KINDS if known.architecture in _DENSE else _KINDS
    for key, value in metadata.items():
        name = key.removeprefix(begin)
        if key.startswith(begin) and (said := _wrong(kinds, name, value)):
            return f"{key}: {said}"
    return None


def _wrong(kinds: Mapping[str, Any], key: str, value: Any) -> str | None:
    kind = kinds.get(key, _Number if key.endswith(_NUMBERS) else Any)
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()[0]["msg"].lower()
    return None
