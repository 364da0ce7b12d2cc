"""Interventions as values: what to change in the stream, apart from how it is hooked in.

`mechprobe.activations.interventions.applied` puts them into a model. Definitions of ablation and
addition: Arditi et al. 2024 (arXiv 2406.11717), section 2.4 and their code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.errors import SpecError


@dataclass(frozen=True, slots=True, eq=False)
class Ablate:
    """Remove a direction from everything that is written to the stream.

    At every chosen layer's block input, attention output and MLP output (what is added to the
    stream), at all positions: `x ← x - (x · r̂) r̂`, r̂ the unit vector. With all layers, nothing
    that the model writes has a component along r̂ (Gemma 4's per-layer embeddings included).
    """

    direction: Float[Tensor, " width"]
    """Of any length but zero; normalised here."""
    layers: tuple[int, ...] | None = None
    """Blocks to ablate in; None for all, as published."""

    def __post_init__(self) -> None:
        _settle(self, "direction", _vector("Ablate", self.direction))
        if self.layers is not None:
            _settle(self, "layers", tuple(int(layer) for layer in self.layers))
            if not self.layers:
                raise SpecError("Ablate.layers is empty; leave it out to ablate in every block")

    @property
    def unit(self) -> Float[Tensor, " width"]:
        """The direction at length 1, float32."""
        wide = self.direction.double()
        unit: Tensor = wide / wide.norm()
        return unit.float()


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Add a vector at one block's input, at all positions: `x ← x + coeff · r`, r as it is."""

    direction: Float[Tensor, " width"]
    """Used raw: its length is the size of the step."""
    layer: int
    coeff: float = 1.0

    def __post_init__(self) -> None:
        _settle(self, "direction", _vector("Add", self.direction))
        if not math.isfinite(self.coeff):
            raise SpecError(f"Add.coeff is {self.coeff}; a finite number is needed")

    @property
    def step(self) -> Float[Tensor, " width"]:
        """What is added, float32."""
        return (self.direction.double() * self.coeff).float()


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Put given values at some positions of one hook point.

    Positions count from the end of the prompt. When generating, only the prompt is patched, not
    the tokens that follow. At `hook_resid_mid` the stream itself is changed, not only what the MLP
    reads; a raw module path changes what that module receives or returns.
    """

    point: str
    """One hook name, or a raw module path with `:in` / `:out`."""
    values: Tensor
    """Shape (position, width), the same for every prompt; or (prompt, position, width)."""
    positions: tuple[int, ...] = (-1,)
    """Negative, in the order of `values`: -1 is the prompt's last token, and
    `range(-batch.post_instruction, 0)` are the template tokens after the instruction of what
    `model.encode` returned, where the refusal direction is looked for."""
    dims: tuple[int, ...] | None = None
    """Dimensions (neurons) to patch, in the order of `values`' last axis; None for all."""

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values).detach()
        positions = tuple(int(position) for position in self.positions)
        _settle(self, "values", values)
        _settle(self, "positions", positions)
        if not positions or len(set(positions)) != len(positions) or max(positions) >= 0:
            raise SpecError(
                f"Patch.positions {list(positions)}: give each once, counted from the end "
                "(-1 is the prompt's last token)"
            )
        if values.dim() not in (2, 3) or values.shape[-2] != len(positions):
            raise SpecError(
                f"Patch.values have shape {tuple(values.shape)}; {len(positions)} positions need "
                "(position, width) or (prompt, position, width)"
            )
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise SpecError("Patch.values must be finite floating-point numbers")
        if self.dims is not None:
            dims = tuple(int(dim) for dim in self.dims)
            _settle(self, "dims", dims)
            if len(set(dims)) != len(dims) or len(dims) != values.shape[-1] or min(dims) < 0:
                raise SpecError(
                    f"Patch.dims name {len(dims)} dimensions for values of width "
                    f"{values.shape[-1]}; give one per value, each once"
                )

    @property
    def per_prompt(self) -> bool:
        """Whether each prompt has values of its own."""
        return self.values.dim() == 3


Intervention = Ablate | Add | Patch


def ablate(x: Tensor, unit: Float[Tensor, " width"]) -> Tensor:
    """`x - (x · r̂) r̂` over the last axis; half precision is widened for the product."""
    wide = x if x.dtype == torch.float64 else x.float()
    unit = unit.to(wide)
    return (wide - (wide @ unit).unsqueeze(-1) * unit).to(x.dtype)


def _settle(holder: object, field: str, value: object) -> None:
    object.__setattr__(holder, field, value)


def _vector(owner: str, value: Tensor | Sequence[float]) -> Tensor:
    vector = torch.as_tensor(value).detach()
    if vector.dim() != 1 or not vector.is_floating_point():
        raise SpecError(
            f"{owner}.direction has shape {tuple(vector.shape)} and type {vector.dtype}; one "
            "floating-point vector of the stream's width is needed"
        )
    length = float(vector.double().norm())
    if not math.isfinite(length) or length == 0.0:
        raise SpecError(f"{owner}.direction has length {length}; it must be finite and not zero")
    return vector
