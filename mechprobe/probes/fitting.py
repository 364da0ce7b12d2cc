"""Fitting: the difference of means at every block input and position, from an observed cell.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3; means are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.errors import MechprobeError, PromptFileError
from mechprobe.probes.direction import RefusalDirection, default_layer
from mechprobe.probes.next_token import logit_rows
from mechprobe.probes.refusal_tokens import refusal_log_odds
from mechprobe.probes.subspaces import DIMENSIONS, refusal_subspace, split_half_angles

if TYPE_CHECKING:
    from mechprobe.probes.observation import Observation

FloatArray = NDArray[np.float64]
Twins = Sequence[tuple[int, int]]
"""Row of a harmful prompt and row of the harmless prompt that differs from it by a small edit."""

_NO_LENGTH = 1e-6
"""A difference shorter than this share of the activations is rounding: no direction."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows of the prompts that the model treats as their label says."""

    harmful: tuple[int, ...]
    """Those with a refusal score above 0."""
    harmless: tuple[int, ...]
    """Those with a refusal score below 0."""

    @classmethod
    def by_score(cls, harmful: FloatArray, harmless: FloatArray) -> Kept:
        """Leave out harmful prompts that are not refused and harmless ones that are.

        Args:
            harmful: Refusal log-odds, shape (n,).
            harmless: The same.

        Raises:
            PromptFileError: None of a label is left.
        """
        kept = cls(
            tuple(np.flatnonzero(np.asarray(harmful) > 0).tolist()),
            tuple(np.flatnonzero(np.asarray(harmless) < 0).tolist()),
        )
        for label, rows, given in (
            ("harmful", kept.harmful, len(harmful)),
            ("harmless", kept.harmless, len(harmless)),
        ):
            if not rows:
                raise PromptFileError(
                    f"none of {given} {label} prompts has a refusal score of the right sign; look "
                    "at the refusal tokens, or whether this model refuses at all"
                )
        return kept


def twin_rows(harmful: Sequence[Any], harmless: Sequence[Any]) -> list[tuple[int, int]]:
    """Which rows are twins.

    Args:
        harmful: Records with `id` and `twin`, in the order of the encoded prompts.
        harmless: The same.
    """
    place = {record.id: row for row, record in enumerate(harmless)}
    return [(row, place[record.twin]) for row, record in enumerate(harmful) if record.twin in place]


def fit_directions(
    cell: Observation,
    *,
    split: str = "fit",
    refusal_ids: Sequence[int] | None = None,
    kept: Kept | None = None,
    positions: Sequence[int] | None = None,
    place: tuple[int, int] | None = None,
    twins: Twins = (),
    dimensions: int = DIMENSIONS,
) -> RefusalDirection:
    """Difference of means at every block input and position, and the subspace at one place.

    Args:
        cell: Observed at `blocks.*.hook_resid_pre`, with logits where `refusal_ids` are given.
        split: Whose prompts are fitted.
        refusal_ids: Leave out prompts on the wrong side of the refusal score.
        kept: Prompts to use, in place of a look at this cell's own scores: the baseline's.
        positions: None is every observed position.
        place: Selected position and layer; None is the last token at 65 % depth.
        twins: Rows of harmful and harmless prompts that belong together.
        dimensions: k of the refusal subspace.

    Raises:
        MechprobeError: The place was not observed.
        PromptFileError: No prompt of a label is left.
        StoreError: Something was not observed.
    """
    sides = (f"{split}/harmful", f"{split}/harmless")
    stores = [cell.store(name) for name in sides]
    chosen = tuple(sorted(positions or stores[0].positions))
    n_layers = cell.facts.n_layers
    if kept is None and refusal_ids is not None:
        kept = Kept.by_score(*(_log_odds(cell, name, refusal_ids) for name in sides))
    if kept is None:
        kept = Kept(*(tuple(range(store.n_prompts)) for store in stores))
    pairs = _renumber(twins, kept)
    position, layer = place or (-1, default_layer(n_layers))
    if position not in chosen or not 0 <= layer < n_layers:
        raise MechprobeError(
            f"position {position}, layer {layer}: this model has layers 0 to {n_layers - 1}, "
            f"and positions {list(chosen)} were observed"
        )
    vectors, floors = [], []
    centre, basis, basis_floor = 0.0, None, None
    for block in range(n_layers):
        a, b = (
            cell.values(name, f"blocks.{block}.hook_resid_pre", chosen)[list(rows)]
            for name, rows in zip(sides, (kept.harmful, kept.harmless), strict=True)
        )
        steps = [_difference(a[:, k], b[:, k]) for k in range(len(chosen))]
        vectors.append(steps)
        floors.append(
            [stats.split_half_cosine(a[:, k], b[:, k], twins=pairs) for k in range(len(chosen))]
        )
        if block == layer:
            at = chosen.index(position)
            length = float(np.linalg.norm(steps[at]))
            middle = (a[:, at].mean(axis=0) + b[:, at].mean(axis=0)) / 2
            centre = float(middle @ steps[at]) / length if length > 0 else 0.0
            if pairs:
                first, second = np.array(pairs).T
                apart = a[first, at] - b[second, at]
                basis = refusal_subspace(apart, dimensions)
                basis_floor = split_half_angles(apart, dimensions)
    return RefusalDirection(
        vectors=np.array(vectors).swapaxes(0, 1).astype(np.float32),
        positions=chosen,
        position=position,
        layer=layer,
        split_halves=np.array(floors, np.float64).T,
        centre=centre,
        basis=basis,
        basis_floor=basis_floor,
        source=cell.facts.source,
        precision=cell.facts.precision,
        kernel=cell.facts.kernel,
        model_digest=cell.facts.model_digest,
        harmful_digest=cell.digest(sides[0]),
        harmless_digest=cell.digest(sides[1]),
        rows_harmful=kept.harmful,
        rows_harmless=kept.harmless,
        n_harmful_given=stores[0].n_prompts,
        n_harmless_given=stores[1].n_prompts,
    )


def _log_odds(cell: Observation, prompts: str, ids: Sequence[int]) -> FloatArray:
    """A few prompts at a time: all logits in float64 would be much beside a small model."""
    rows = logit_rows(cell, None, prompts)
    return np.concatenate([refusal_log_odds(logits, ids) for logits, _ in rows])


def _difference(a: FloatArray, b: FloatArray) -> FloatArray:
    """Harmful mean minus harmless mean, exactly zero where only rounding differs."""
    found: FloatArray = a.mean(axis=0) - b.mean(axis=0)
    scale = float(np.sqrt((b**2).sum(axis=1).mean()))
    return found if float(np.linalg.norm(found)) > _NO_LENGTH * scale else np.zeros_like(found)


def _renumber(twins: Twins, kept: Kept) -> list[tuple[int, int]]:
    """Twins by their rows among the prompts that were kept, where both were."""
    first = {row: k for k, row in enumerate(kept.harmful)}
    second = {row: k for k, row in enumerate(kept.harmless)}
    return [(first[a], second[b]) for a, b in twins if a in first and b in second]
