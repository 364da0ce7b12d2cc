"""What the refusal direction probe reads of an observed cell, and what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechprobe import stats
from mechprobe.models.rendering import require_parity
from mechprobe.probes.baseline import baseline_warnings
from mechprobe.probes.candidates import Scores
from mechprobe.probes.direction import RefusalDirection, default_layer
from mechprobe.probes.direction_result import (
    NO_CAUSAL,
    SELECTION,
    Angles,
    Comparison,
    RefusalDirectionResult,
)
from mechprobe.probes.fitting import Kept, Twins, fit_directions
from mechprobe.probes.observation import Need, Observation
from mechprobe.probes.separability import Separability, separate
from mechprobe.probes.shared_weights import SharedWeights
from mechprobe.probes.steering import CausalCheck
from mechprobe.probes.subspaces import DIMENSIONS, principal_angles

LABELS = ("harmful", "harmless")
_POINTS = ("blocks.*.hook_resid_pre",)


def needs(post_instruction: int = 1, *, study: bool = False) -> tuple[Need, ...]:
    """What the probe reads: block inputs of the fitting and of the held-out prompts.

    Args:
        post_instruction: Template tokens after the instruction; each is a candidate position.
        study: Only the evaluation prompts, at the last token.
    """
    if study:
        return tuple(Need(f"evaluate/{label}", _POINTS) for label in LABELS)
    places = tuple(range(-post_instruction, 0))
    return (
        # by their logits some fitting prompts are left out
        *(Need(f"fit/{label}", _POINTS, places, logits=True) for label in LABELS),
        *(Need(f"evaluate/{label}", _POINTS, places) for label in LABELS),
    )


def measure(
    cell: Observation,
    baseline: Observation | RefusalDirection | None = None,
    *,
    refusal_ids: Sequence[int] | None = None,
    place: tuple[int, int] | None = None,
    scores: Scores | None = None,
    twins: Twins = (),
    dimensions: int = DIMENSIONS,
    causal: CausalCheck | None = None,
    clusters: Mapping[str, Sequence[Any]] | None = None,
    study: bool = False,
    shared: SharedWeights | None = None,
) -> RefusalDirectionResult:
    """Fit the direction on one split and measure it on another.

    Args:
        cell: Observed with `needs()`.
        baseline: Observed on the same token ids; or its direction, as saved.
        refusal_ids: Leave out fitting prompts on the wrong side of the refusal score, as the
            baseline scores them (the cell without one); None keeps all.
        place: Position and layer; None is the scores', else the baseline's, else the last token
            at 65 % depth.
        scores: Of the candidates, from `score_candidates` on this cell.
        twins: Rows of the fitting prompts that belong together.
        dimensions: k of the refusal subspaces.
        causal: From `causal_check` on this cell.
        clusters: By prompt set, which prompts belong together; twins do across sets.
        study: As arXiv 2606.10154: fitted and compared on the evaluation prompts.
        shared: Which layers' weights equal the baseline's.

    Raises:
        MechprobeError: The place was not observed.
        ParityError: The two saw different token ids.
        PromptFileError: No fitting prompt of a label is left.
    """
    split = "evaluate" if study else "fit"
    if scores is not None and place is None:
        place = scores.place
    before = baseline if isinstance(baseline, RefusalDirection) else None
    if isinstance(baseline, Observation):
        for name in {f"{part}/{label}" for part in (split, "evaluate") for label in LABELS}:
            cell.require_parity(baseline, name)
        before = fit_directions(
            baseline,
            split=split,
            refusal_ids=None if study else refusal_ids,
            place=place,
            twins=twins,
            dimensions=dimensions,
        )
    if before is not None:
        require_parity(before.harmful_digest, cell.digest(f"{split}/harmful"), "harmful")
        require_parity(before.harmless_digest, cell.digest(f"{split}/harmless"), "harmless")
        place = place or (before.position, before.layer)
    own = fit_directions(
        cell,
        split=split,
        refusal_ids=None if study else refusal_ids,
        kept=None if before is None else Kept(before.rows_harmful, before.rows_harmless),
        place=place,
        twins=twins,
        dimensions=dimensions,
    )
    missing = [] if before else ["comparison with a baseline: none was given"]
    sides: dict[str, Separability | None] = {"own": None, "baseline": None}
    if study:
        missing.append("separability, subspaces, selection: not part of the study mode")
    else:
        sides = _separabilities(cell, own, before, clusters or {}, missing)
    if not study and refusal_ids is None:
        missing.append("fitting prompts by their refusal score: no refusal tokens, all were used")
    if scores is not None and scores.selection is None:
        missing.append(f"{SELECTION}{scores.problem}")
    elif not study and scores is None and before is None and place is None:
        missing.append(f"{SELECTION}candidates were not scored; last token at 65 % depth")
    if causal is None:
        missing.append(NO_CAUSAL)
    angles = None if study else _angles(own, before, missing)
    return RefusalDirectionResult(
        direction=own,
        study=study,
        baseline=None if before is None else f"{before.source} ({before.precision})",
        selected=_compare(own, before, own.position, own.layer, missing),
        study_place=_compare(own, before, -1, default_layer(own.n_layers), []),
        own=sides["own"],
        on_baseline=sides["baseline"],
        angles=angles,
        scores=scores,
        causal=causal,
        n_harmful=cell.store("evaluate/harmful").n_prompts,
        n_harmless=cell.store("evaluate/harmless").n_prompts,
        evaluate_harmful_digest=cell.digest("evaluate/harmful"),
        evaluate_harmless_digest=cell.digest("evaluate/harmless"),
        not_measured=tuple(missing),
        warnings=(
            *baseline_warnings(None if before is None else before.precision),
            *_blind(shared, own.layer),
        ),
    )


def _blind(shared: SharedWeights | None, layer: int) -> list[str]:
    """Warn where all that the place is computed from is the baseline's."""
    if shared is None or not shared.reads_shared(layer - 1):
        return []
    return [
        f"up to block {layer} {shared.said([layer - 1])}: the direction there is the baseline's "
        "own, and cannot show what differs behind it"
    ]


def _compare(
    own: RefusalDirection,
    before: RefusalDirection | None,
    position: int,
    layer: int,
    missing: list[str],
) -> Comparison:
    vector = own.at(position, layer).astype(np.float64)
    norm = float(np.linalg.norm(vector))
    if before is None:
        return Comparison(position, layer, norm, None, own.floor(position, layer), None)
    other = before.at(position, layer).astype(np.float64)
    length = float(np.linalg.norm(other))
    floor = before.floor(position, layer)
    cosine = stats.cosine(vector, other) if norm > 0 and length > 0 else None
    if cosine is None:
        missing.append("cosine: harmful and harmless prompts do not differ at this place")
    if floor is None:
        missing.append("noise floor of the cosine: too few fitting prompts")
    return Comparison(position, layer, norm, cosine, floor, norm / length if length > 0 else None)


def _separabilities(
    cell: Observation,
    own: RefusalDirection,
    before: RefusalDirection | None,
    clusters: Mapping[str, Sequence[Any]],
    missing: list[str],
) -> dict[str, Separability | None]:
    sets = [clusters.get(f"evaluate/{label}") for label in LABELS]
    together = None if sets[0] is None or sets[1] is None else (sets[0], sets[1])
    point = f"blocks.{own.layer}.hook_resid_pre"
    a, b = (cell.values(f"evaluate/{label}", point, (own.position,))[:, 0] for label in LABELS)
    found: dict[str, Separability | None] = {"own": None, "baseline": None}
    if own.norm > 0:
        found["own"] = separate(a, b, own.vector.astype(np.float64), own.centre, "own", together)
    else:
        missing.append("separability: harmful and harmless prompts do not differ at this place")
    if before is None:
        return found
    other = before.at(own.position, own.layer).astype(np.float64)
    if (before.position, before.layer) != (own.position, own.layer):
        missing.append(
            f"separability on the baseline's direction: it was saved for position "
            f"{before.position}, layer {before.layer}"
        )
    elif float(np.linalg.norm(other)) > 0:
        found["baseline"] = separate(a, b, other, before.centre, "baseline", together)
    return found


def _angles(
    own: RefusalDirection, before: RefusalDirection | None, missing: list[str]
) -> Angles | None:
    if before is None:
        return None
    if own.basis is None or before.basis is None:
        missing.append("principal angles: too few twins among the fitting prompts")
        return None
    if (before.position, before.layer) != (own.position, own.layer):
        missing.append("principal angles: the baseline's subspace is that of another place")
        return None
    return Angles(principal_angles(before.basis, own.basis), before.basis_floor)
