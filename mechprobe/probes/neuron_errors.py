"""What is known of each dimension of a hook point: contrast, scale, error, on prompts of their own.

Safety dimensions are chosen on the fitting prompts, errors are measured on the first half of the
evaluation prompts (every other one), scale on the other half and the selection prompts: no prompt
serves twice. Scale is of harmful prompts alone, because the errors are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechprobe.errors import ParityError
from mechprobe.probes.matching import BoolArray, FloatArray, MatchedSets, match

if TYPE_CHECKING:
    from mechprobe.probes.neuron_weights import WeightError
    from mechprobe.probes.observation import Observation

Kind = Literal["residual", "mlp"]
KINDS: tuple[Kind, ...] = ("residual", "mlp")
N_ERROR = 50
"""Harmful prompts that errors are measured on."""
FITS = ("fit/harmful", "fit/harmless")
SCALES = "select/harmful"
ERRORS = "evaluate/harmful"
PLAIN = "evaluate/harmless"


@dataclass(frozen=True, slots=True)
class Profile:
    """The dimensions of one hook point, arrays of shape (dimension,), float64."""

    point: str
    kind: Kind
    layer: int
    contrast: FloatArray
    """|mean(harmful) - mean(harmless)| of the baseline, on the fitting prompts."""
    error: FloatArray
    """Mean absolute difference between cell and baseline."""
    rms: FloatArray
    """Root mean square of the baseline on the prompts of the errors: for the relative error."""
    scale: FloatArray
    """Log-RMS of the baseline on held-out prompts: what is matched on."""
    scale_again: FloatArray
    """The same on other held-out prompts: what is left within a match."""
    gain: FloatArray
    """What the cell's activation was multiplied by (AWQ rescales MLP neurons); else ones."""
    weight_error: FloatArray | None = None
    """‖ΔW‖ of the neuron's rows and columns; None where weights were not compared."""
    weight_norm: FloatArray | None = None

    def safety(self, share: float) -> BoolArray:
        """The dimensions of largest contrast."""
        return top(self.contrast, share)

    def matched(self, share: float) -> MatchedSets:
        """Each safety dimension with others of its scale."""
        return match(self.scale, self.safety(share))

    def arrays(self) -> dict[str, FloatArray]:
        """The arrays by name, those that there are."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in named if isinstance(value, np.ndarray)}


def study_layers(n_layers: int) -> tuple[int, ...]:
    """Five evenly spaced blocks from 20 % to 80 % depth, fewer where some coincide.

    In whole numbers, because 0.35 · 20 is no 7 in floating point.
    """
    return tuple(sorted({(4 + 3 * k) * n_layers // 20 for k in range(5)}))


def residual_point(layer: int) -> str:
    """Where residual dimensions are read: the block's output."""
    return f"blocks.{layer}.hook_resid_post"


def mlp_point(layer: int) -> str:
    """Where MLP neurons are read: the input of the down projection."""
    return f"blocks.{layer}.mlp.hook_post"


def point_of(kind: Kind, layer: int) -> str:
    """The hook point of one kind of neuron."""
    return residual_point(layer) if kind == "residual" else mlp_point(layer)


def top(contrast: FloatArray, share: float) -> BoolArray:
    """The share of dimensions with the largest contrast, one at least; ties by index."""
    count = max(1, round(share * len(contrast)))
    chosen = np.zeros(len(contrast), dtype=bool)
    chosen[np.argsort(-contrast, kind="stable")[:count]] = True
    return chosen


def ratio(error: FloatArray, safety: BoolArray) -> float | None:
    """Mean error of safety dimensions over that of all others; None where the others have none."""
    others = error[~safety]
    if not safety.any() or not len(others) or not others.mean() > 0:
        return None
    return float(error[safety].mean() / others.mean())


def rows_of_error(n: int) -> list[int]:
    """Which evaluation prompts errors are measured on: every other one, 50 at most."""
    return list(range(0, n, 2))[:N_ERROR]


def contrast(harmful: FloatArray, harmless: FloatArray) -> FloatArray:
    """|mean(harmful) - mean(harmless)| per dimension, float64 means."""
    found: FloatArray = np.abs(harmful.mean(axis=0) - harmless.mean(axis=0))
    return found


def log_rms(values: FloatArray) -> FloatArray:
    """Natural logarithm of the root mean square over prompts; -inf for a dead dimension."""
    with np.errstate(divide="ignore"):
        found: FloatArray = 0.5 * np.log((values**2).mean(axis=0))
    return found


def profile(
    cell: Observation,
    baseline: Observation,
    kind: Kind,
    layer: int,
    weights: WeightError | None = None,
    *,
    own_differs: bool = True,
) -> Profile:
    """Read one hook point of both cells.

    Args:
        cell: Observed with the probe's needs.
        baseline: The same.
        kind: Of neuron.
        layer: Its block.
        weights: What quantization did to the neurons' weights, where that was compared.
        own_differs: Whether it did anything to those of this block but round them to 16 bits.

    Raises:
        HookNameError: It was not observed.
        ParityError: The widths differ.
    """
    point = point_of(kind, layer)
    base, found = baseline.last(ERRORS, point), cell.last(ERRORS, point)
    if base.shape != found.shape:
        raise ParityError(
            f"{point}: shapes {found.shape} and {base.shape}; the cells are not of one model"
        )
    rows = rows_of_error(len(base))
    held = np.concatenate(
        [np.delete(base, rows, axis=0), baseline.last(SCALES, point)],
    )
    gain = np.ones(base.shape[1]) if weights is None else weights.gain
    return Profile(
        point=point,
        kind=kind,
        layer=layer,
        contrast=contrast(*(baseline.last(name, point) for name in FITS)),
        error=np.abs(found[rows] * gain - base[rows]).mean(axis=0),
        rms=np.sqrt((base[rows] ** 2).mean(axis=0)),
        scale=log_rms(held[::2]),
        scale_again=log_rms(held[1::2]),
        gain=gain,
        weight_error=None if weights is None or not own_differs else weights.error,
        weight_norm=None if weights is None else weights.norm,
    )


def stacked(profiles: Sequence[Profile], name: str) -> FloatArray:
    """One array of all layers of a kind, shape (dimension, layer)."""
    return np.stack([getattr(each, name) for each in profiles], axis=1)


def from_arrays(saved: Mapping[str, Any]) -> tuple[Profile, ...]:
    """Profiles from what `arrays` gave, keyed `point/name`.

    Raises:
        TypeError: An array is missing or unknown.
    """
    found: dict[str, dict[str, FloatArray]] = {}
    for key in saved:
        point, _, name = key.rpartition("/")
        found.setdefault(point, {})[name] = saved[key]
    return tuple(
        Profile(
            point=point,
            kind="mlp" if ".mlp." in point else "residual",
            layer=int(point.split(".")[1]),
            **arrays,
        )
        for point, arrays in found.items()
    )
