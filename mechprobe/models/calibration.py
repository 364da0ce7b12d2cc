"""Prompts that a quantizer looks at while it rounds: named, rendered, and known by their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError
from mechprobe.models.rendering import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Calibration:
    """User messages for calibration, under a name that says where they come from."""

    name: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the texts, hex."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def named_calibration(texts: Sequence[str] | None, name: str | None) -> Calibration:
    """Name the prompts that a caller gives.

    Raises:
        CheckpointError: There are none.
    """
    if texts is None:
        raise CheckpointError(
            "AWQ and GPTQ need calibration prompts; pass calibration=[…], 128 harmless ones or so, "
            "or call mechprobe.quantize, which has a default"
        )
    if not texts:
        raise CheckpointError("the calibration prompts are empty; give 128 or so")
    return Calibration(name or "caller's prompts", tuple(texts))


def calibration_ids(
    calibration: Calibration, tokenizer: PreTrainedTokenizerBase, window: int
) -> list[list[int]]:
    """Token ids, rendered by the chat template where there is one, at most `window` long."""
    template = "chat" if tokenizer.chat_template else "raw"
    encoded = encode(tokenizer, calibration.texts, template=template)  # type: ignore[arg-type]
    return [list(ids[:window]) for ids in encoded.ids]
