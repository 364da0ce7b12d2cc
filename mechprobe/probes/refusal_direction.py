"""Refusal direction: where a model tells harmful from harmless, and whether that still refuses.

The direction is fitted on one split of the prompts, its place is selected on a second, and
everything else is measured on a third: with more dimensions than prompts, an in-sample AUC is
always 1. Whether the direction *causes* refusals is tested by generation: ablated on harmful
prompts, added on harmless ones, each beside a random orthogonal direction of the same length.

Source: Arditi et al. 2024 (arXiv 2406.11717) for the direction, its selection and both
interventions; the last token at 65 % depth is the choice of arXiv 2606.10154, which `study=True`
reproduces: one set of prompts, no selection, no held-out split, cosine and norms alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError, PromptFileError
from mechprobe.probes.candidates import Scores, score_candidates
from mechprobe.probes.direction import RefusalDirection, default_layer
from mechprobe.probes.direction_measure import LABELS, measure, needs
from mechprobe.probes.direction_result import Comparison, RefusalDirectionResult
from mechprobe.probes.fitting import Kept, Twins, fit_directions, twin_rows
from mechprobe.probes.observation import Observation, observe
from mechprobe.probes.selection import Selection, select_direction
from mechprobe.probes.steering import CausalCheck, causal_check, random_orthogonal

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

__all__ = [
    "LABELS",
    "CausalCheck",
    "Comparison",
    "Kept",
    "RefusalDirection",
    "RefusalDirectionResult",
    "Scores",
    "Selection",
    "causal_check",
    "default_layer",
    "fit",
    "fit_directions",
    "measure",
    "needs",
    "random_orthogonal",
    "run",
    "score_candidates",
    "select_direction",
    "twin_rows",
]


def fit(
    checkpoint: Checkpoint,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    layer: int | None = None,
    twins: Twins = (),
) -> RefusalDirection:
    """Difference of means at every block input of a live model, at the last token.

    Raises:
        CheckpointError: The cell is a native GGUF.
        MechprobeError: The layer does not exist.
    """
    with tempfile.TemporaryDirectory() as scratch:
        seen = _observe(checkpoint, {"fit/harmful": harmful, "fit/harmless": harmless}, scratch)
        n_layers = seen.facts.n_layers
        place = (-1, default_layer(n_layers) if layer is None else layer)
        return fit_directions(seen, place=place, twins=twins)


def run(
    checkpoint: Checkpoint,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    eval_harmful: EncodedPrompts,
    eval_harmless: EncodedPrompts,
    select_harmful: EncodedPrompts | None = None,
    select_harmless: EncodedPrompts | None = None,
    refusal_ids: Sequence[int] | None = None,
    layer: int | None = None,
    baseline: RefusalDirection | None = None,
    twins: Twins = (),
    causal: bool = True,
    instrument: str = "hard",
    max_new_tokens: int = 32,
) -> RefusalDirectionResult:
    """Observe, fit, select, measure and steer one live model.

    Args:
        checkpoint: The cell, with a graph to hook.
        harmful: Fitting prompts.
        harmless: Fitting prompts, ideally the twins of the harmful ones.
        eval_harmful: Held-out prompts; none of them may be a fitting prompt.
        eval_harmless: Held-out prompts.
        select_harmful: Prompts to select the place on; needs `refusal_ids` too.
        select_harmless: The same.
        refusal_ids: First tokens by which the model refuses.
        layer: The block whose input is read, at the last token; None takes the selected place,
            else the baseline's, else 65 % depth.
        baseline: The baseline's direction, fitted on the same token ids.
        twins: Rows of the fitting prompts that belong together.
        causal: Generate under ablation and addition.
        instrument: Names the refusal instrument that reads the generations.
        max_new_tokens: Of each generation.

    Raises:
        CheckpointError: The cell is a native GGUF.
        ParityError: The baseline was fitted on other token ids.
        PromptFileError: A prompt is in two splits.
    """
    prompts = {
        "fit/harmful": harmful,
        "fit/harmless": harmless,
        "evaluate/harmful": eval_harmful,
        "evaluate/harmless": eval_harmless,
    }
    place = None if layer is None else (-1, layer)
    with tempfile.TemporaryDirectory() as scratch:
        chooses = layer is None and refusal_ids is not None and select_harmful is not None
        positions = harmful.post_instruction if chooses else 1
        if baseline is not None:
            positions = max(positions, -min(baseline.positions))
        seen = _observe(checkpoint, prompts, scratch, positions, logits=refusal_ids is not None)
        scores = None
        if chooses and select_harmful and select_harmless and refusal_ids is not None:
            candidates = fit_directions(seen, refusal_ids=refusal_ids)
            scores = score_candidates(
                checkpoint, candidates, select_harmful, select_harmless, refusal_ids
            )
            if baseline is not None:  # a cell is compared where its baseline was selected
                place = (baseline.position, baseline.layer)
        result = measure(
            seen, baseline, refusal_ids=refusal_ids, place=place, scores=scores, twins=twins
        )
    if not causal:
        return result
    check = causal_check(
        checkpoint,
        result.direction,
        eval_harmful,
        eval_harmless,
        instrument=instrument,
        max_new_tokens=max_new_tokens,
    )
    return result.with_causal(check)


def _observe(
    checkpoint: Checkpoint,
    prompts: Mapping[str, EncodedPrompts],
    folder: str,
    positions: int = 1,
    *,
    logits: bool = False,
) -> Observation:
    if checkpoint.module is None:
        raise CheckpointError(f"{checkpoint.source}: a probe needs the dense kernel for a GGUF")
    for label in LABELS:
        fitted, held = prompts[f"fit/{label}"], prompts.get(f"evaluate/{label}")
        if held is not None and (shared := set(fitted.ids) & set(held.ids)):
            raise PromptFileError(
                f"{len(shared)} prompts are in both the fitting and held-out split"
            )
    wanted = [need for need in needs(positions, logits=logits) if need.prompts in prompts]
    return observe(checkpoint, prompts, wanted, folder)
