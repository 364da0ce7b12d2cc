"""Prompts that a quantizer looks at while it rounds: named, rendered, and known by their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mechprobe.errors import CheckpointError
from mechprobe.models.rendering import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORGANISM_PROMPTS: Final = 128


@dataclass(frozen=True, slots=True)
class Calibration:
    """User messages for calibration, under a name that says where they come from."""

    name: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the texts, hex."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def choose_calibration(
    source: str, given: Sequence[str] | None, name: str | None, seed: int
) -> Calibration:
    """The caller's prompts; for an organism, harmless training prompts of its world.

    Raises:
        CheckpointError: No prompts were given, and the model is no organism.
    """
    if given is not None:
        texts = tuple(given)
        if not texts:
            raise CheckpointError("the calibration prompts are empty; give 128 or so")
        return Calibration(name or "caller's prompts", texts)
    if not source.startswith("organism:"):
        raise CheckpointError(
            f"{source}: AWQ and GPTQ need calibration prompts; pass calibration=[…] "
            "(--calibration FILE), 128 harmless ones or so"
        )
    from mechprobe.organisms.world import requests

    twins = requests("train", ORGANISM_PROMPTS, seed)
    harmless = tuple(request.text for request in twins if request.label == "harmless")
    return Calibration(name or f"organism world, harmless, train, seed {seed}", harmless)


def calibration_ids(
    calibration: Calibration, tokenizer: PreTrainedTokenizerBase, window: int
) -> list[list[int]]:
    """Token ids, rendered by the chat template where there is one, at most `window` long."""
    template = "chat" if tokenizer.chat_template else "raw"
    encoded = encode(tokenizer, calibration.texts, template=template)  # type: ignore[arg-type]
    return [list(ids[:window]) for ids in encoded.ids]
