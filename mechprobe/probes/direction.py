"""The refusal direction as a value: what it is, where it was fitted, and its file on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.errors import MechprobeError, StoreError
from mechprobe.textfiles import parse_json

WEIGHTS = "refusal_direction.safetensors"
SCHEMA = 2
DEPTH = 0.65
"""Relative depth of the layer that arXiv 2606.10154 reads."""
_ARRAYS = ("vectors", "split_halves", "basis")


def default_layer(n_layers: int) -> int:
    """The block at 65 % depth."""
    return min(int(DEPTH * n_layers), n_layers - 1)


@dataclass(frozen=True, slots=True, eq=False)
class RefusalDirection:
    """Difference of means, harmful minus harmless, at block inputs; one place is selected.

    All candidates are kept, so that a cell can be compared with a baseline wherever one looks.
    Source: Arditi et al. 2024 (arXiv 2406.11717).
    """

    vectors: NDArray[np.float32]
    """Raw (not unit) differences, shape (n_positions, n_layers, width): float64 means stored as
    float32. Exactly zero where the activations do not differ but by rounding."""
    positions: tuple[int, ...]
    """Of the first axis, counted from the end of the prompt, ascending to -1."""
    position: int
    """The selected one."""
    layer: int
    """The block whose input carries the selected direction."""
    split_halves: NDArray[np.float64]
    """Noise floor of a cosine at every place, shape (n_positions, n_layers); NaN where none."""
    centre: float
    """Projection half-way between the means of harmful and harmless fitting prompts."""
    basis: NDArray[np.float64] | None
    """Orthonormal rows that span the refusal subspace at the selected place, shape (k, width)."""
    basis_floor: tuple[float, ...] | None
    """Principal angles in degrees between halves of the twins: the subspace's noise floor."""
    source: str
    precision: str
    kernel: str
    model_digest: str
    harmful_digest: str
    """SHA-256 of the fitting prompts' token ids; cosines need equal digests on both sides."""
    harmless_digest: str
    rows_harmful: tuple[int, ...]
    """Fitting prompts that were used: those that the baseline refuses."""
    rows_harmless: tuple[int, ...]
    """Those that it does not refuse."""
    n_harmful_given: int
    """Fitting prompts before any was left out."""
    n_harmless_given: int

    @property
    def n_harmful(self) -> int:
        """Harmful prompts that were fitted."""
        return len(self.rows_harmful)

    @property
    def n_harmless(self) -> int:
        """Harmless prompts that were fitted."""
        return len(self.rows_harmless)

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return int(self.vectors.shape[1])

    @property
    def vector(self) -> NDArray[np.float32]:
        """The selected raw direction, shape (width,)."""
        return self.at(self.position, self.layer)

    def at(self, position: int, layer: int) -> NDArray[np.float32]:
        """The raw direction of one place, shape (width,).

        Raises:
            MechprobeError: It was not fitted there.
        """
        if position not in self.positions or not 0 <= layer < self.n_layers:
            raise MechprobeError(
                f"position {position}, layer {layer}: directions were fitted at positions "
                f"{list(self.positions)} of layers 0 to {self.n_layers - 1}"
            )
        found: NDArray[np.float32] = self.vectors[self.positions.index(position), layer]
        return found

    def floor(self, position: int, layer: int) -> float | None:
        """Split-half cosine at one place, None where there is none."""
        value = float(self.split_halves[self.positions.index(position), layer])
        return value if np.isfinite(value) else None

    @property
    def split_half(self) -> float | None:
        """Cosine between halves of the fitting prompts: the noise floor of a cosine with this."""
        return self.floor(self.position, self.layer)

    @property
    def unit(self) -> NDArray[np.float32]:
        """The selected direction at length 1, shape (width,).

        Raises:
            MechprobeError: It has no length: harmful and harmless prompts do not differ there.
        """
        if not self.norm > 0:
            raise MechprobeError(
                f"{self.source}: harmful and harmless prompts do not differ at position "
                f"{self.position} of layer {self.layer}; choose another layer"
            )
        return self.vector / np.float32(self.norm)

    @property
    def norm(self) -> float:
        """Euclidean length of the selected direction, in residual-stream units."""
        return float(np.linalg.norm(self.vector.astype(np.float64)))

    def facts(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON values."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    def save(self, folder: Path) -> Path:
        """Write `refusal_direction.safetensors`; returns its path."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_file(
            {k: np.ascontiguousarray(v) for k, v in arrays.items() if v is not None},
            folder / WEIGHTS,
            {"mechprobe": json.dumps({"schema": SCHEMA, **self.facts()})},
        )
        return folder / WEIGHTS

    @classmethod
    def load(cls, path: str | Path) -> RefusalDirection:
        """Read what `save` wrote: the file, or the folder that holds it.

        Raises:
            StoreError: The file is missing, corrupt, or not one of these.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        file = path / WEIGHTS if path.is_dir() else path
        if not file.is_file():
            raise StoreError(f"{file}: no such file; a refusal direction is saved as {WEIGHTS}")
        try:
            with safe_open(file, framework="numpy") as handle:
                facts: dict[str, Any] = parse_json((handle.metadata() or {})["mechprobe"])
                found = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            if facts.pop("schema") != SCHEMA:
                raise StoreError(f"{file}: written by another version of mechprobe; fit it again")
            tuples = {k: tuple(v) for k, v in facts.items() if isinstance(v, list)}
            return cls(**{"basis": None, **found, **facts, **tuples})
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{file}: not a saved refusal direction ({error})") from error
