"""The refusal direction as a value: what it is, where it was fitted, and its file on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.errors import StoreError

WEIGHTS = "refusal_direction.safetensors"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class RefusalDirection:
    """Difference of means, harmful minus harmless, at the input of every block (last token).

    Source: Arditi et al. 2024 (arXiv 2406.11717). One layer is selected; the others are kept so
    that a cell can be compared with a baseline layer by layer.
    """

    vectors: NDArray[np.float32]
    """Raw (not unit) differences, shape (n_layers, width); float64 means, stored as float32."""
    layer: int
    """The block whose input carries the selected direction."""
    split_half: float | None
    """Cosine between halves of the fitting prompts: the noise floor of a cosine with this."""
    source: str
    precision: str
    kernel: str
    model_digest: str
    harmful_digest: str
    """SHA-256 of the fitting prompts' token ids; cosines need equal digests on both sides."""
    harmless_digest: str
    n_harmful: int
    n_harmless: int

    @property
    def vector(self) -> NDArray[np.float32]:
        """The selected raw direction, shape (width,)."""
        chosen: NDArray[np.float32] = self.vectors[self.layer]
        return chosen

    @property
    def unit(self) -> NDArray[np.float32]:
        """The selected direction at length 1, shape (width,)."""
        return self.vector / np.float32(self.norm)

    @property
    def norm(self) -> float:
        """Euclidean length of the selected direction, in residual-stream units."""
        return float(np.linalg.norm(self.vector.astype(np.float64)))

    def save(self, folder: Path) -> Path:
        """Write `refusal_direction.safetensors`; returns its path."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        facts = {k: v for k, v in asdict(self).items() if k != "vectors"}
        save_file(
            {"vectors": np.ascontiguousarray(self.vectors)},
            folder / WEIGHTS,
            {"mechprobe": json.dumps({"schema": SCHEMA, **facts})},
        )
        return folder / WEIGHTS

    @classmethod
    def load(cls, path: Path) -> RefusalDirection:
        """Read what `save` wrote: the file, or the folder that holds it.

        Raises:
            StoreError: The file is missing, corrupt, or not one of these.
        """
        from safetensors import SafetensorError, safe_open

        file = path / WEIGHTS if path.is_dir() else path
        if not file.is_file():
            raise StoreError(f"{file}: no such file; a refusal direction is saved as {WEIGHTS}")
        try:
            with safe_open(file, framework="numpy") as handle:
                facts: dict[str, Any] = json.loads((handle.metadata() or {})["mechprobe"])
                vectors = handle.get_tensor("vectors")
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"{file}: not a saved refusal direction ({error})") from error
        if facts.pop("schema") != SCHEMA:
            raise StoreError(f"{file}: written by another version of mechprobe; fit it again")
        return cls(vectors=vectors, **facts)
