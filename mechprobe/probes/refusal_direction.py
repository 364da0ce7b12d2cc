"""Refusal direction: where a model tells harmful from harmless, and whether that still refuses.

The direction is fitted on one split of the prompts and everything else is measured on another:
with more dimensions than prompts, an in-sample AUC is always 1. Whether the direction *causes*
refusals is tested by generation: ablated on harmful prompts, added on harmless ones, each beside
a random orthogonal direction of the same length.

Source: Arditi et al. 2024 (arXiv 2406.11717) for the direction and both interventions; the layer
at 65 % depth is the choice of arXiv 2606.10154.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mechprobe import stats
from mechprobe.activations import Ablate, Add, Intervention, run_with_cache
from mechprobe.behavior.refusal import Rate, refusal_rate
from mechprobe.errors import CheckpointError, MechprobeError, PromptFileError, StoreError
from mechprobe.generation import open_engine
from mechprobe.models.checkpoint import Checkpoint
from mechprobe.models.rendering import EncodedPrompts, require_parity
from mechprobe.probes.direction import RefusalDirection

DEPTH = 0.65
"""Relative depth of the default layer (arXiv 2606.10154)."""
RESULT = "refusal_direction.json"


@dataclass(frozen=True, slots=True)
class CausalCheck:
    """Refusal rates by generation on held-out prompts, read by one named instrument."""

    instrument: str
    harmful: Rate
    """As the model is."""
    harmful_ablated: Rate
    """With the direction ablated at every layer and position."""
    harmful_ablated_random: Rate
    """The same with a random direction orthogonal to it: the control."""
    harmless: Rate
    harmless_added: Rate
    """With the raw direction added at its layer's block input."""
    harmless_added_random: Rate
    """The same with a random orthogonal direction of equal length: the control."""


@dataclass(frozen=True, slots=True)
class RefusalDirectionResult:
    """What one cell's refusal direction is, does, and shares with its baseline's."""

    direction: RefusalDirection
    auc: float | None
    """ROC-AUC of held-out projections onto this cell's own direction."""
    dprime: float | None
    auc_on_baseline: float | None
    """The same onto the baseline's direction: what a probe trained before quantization sees."""
    dprime_on_baseline: float | None
    cosine: float | None
    """Cosine to the baseline's direction at the same layer."""
    cosine_floor: float | None
    """Split-half cosine of the baseline itself; a cosine above it shows no change."""
    norm_ratio: float | None
    n_harmful: int
    """Held-out prompts behind the separability figures."""
    n_harmless: int
    causal: CausalCheck | None
    not_measured: tuple[str, ...]
    """What is missing above, and why."""

    @property
    def layer(self) -> int:
        """The block whose input was read."""
        return self.direction.layer

    @property
    def norm(self) -> float:
        """Length of the raw direction, in residual-stream units."""
        return self.direction.norm

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the vectors themselves stay in the safetensors file."""
        facts = {k: v for k, v in asdict(self).items() if k != "direction"}
        kept = {k: v for k, v in asdict(self.direction).items() if k != "vectors"}
        return {"probe": "refusal_direction", "norm": self.norm, **kept, **facts}

    def save(self, folder: str | Path) -> Path:
        """Write `refusal_direction.safetensors` and `refusal_direction.json` into a folder."""
        target = Path(folder)
        self.direction.save(target)
        (target / RESULT).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> RefusalDirectionResult:
        """Read what `save` wrote.

        Raises:
            StoreError: A file is missing or is not one of these.
        """
        target = Path(folder)
        direction = RefusalDirection.load(target)
        try:
            facts = json.loads((target / RESULT).read_text())
            causal: dict[str, Any] | None = facts["causal"]
            if causal is not None:
                causal = {k: Rate(**v) if isinstance(v, dict) else v for k, v in causal.items()}
            own = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{target / RESULT}: not a saved result ({error})") from error
        own |= {
            "direction": direction,
            "causal": CausalCheck(**causal) if causal else None,
            "not_measured": tuple(own["not_measured"]),
        }
        return cls(**own)


def default_layer(n_layers: int) -> int:
    """The block at 65 % depth."""
    return min(int(DEPTH * n_layers), n_layers - 1)


def block_inputs(checkpoint: Checkpoint, prompts: EncodedPrompts) -> NDArray[np.float32]:
    """Residual stream at the last prompt token, entering every block: (n, n_layers, width)."""
    _, cache = run_with_cache(checkpoint, prompts, "blocks.*.hook_resid_pre", positions="last")
    layers = [cache[name][:, 0] for name in sorted(cache, key=_layer_of)]
    return torch.stack(layers, dim=1).float().cpu().numpy()


def _layer_of(name: str) -> int:
    return int(name.split(".")[1])


def fit(
    checkpoint: Checkpoint,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    layer: int | None = None,
) -> RefusalDirection:
    """Difference of means at every block input, on the fitting prompts.

    Raises:
        MechprobeError: The layer does not exist.
    """
    a, b = block_inputs(checkpoint, harmful), block_inputs(checkpoint, harmless)
    n_layers = a.shape[1]
    chosen = default_layer(n_layers) if layer is None else layer
    if not 0 <= chosen < n_layers:
        raise MechprobeError(f"layer {chosen}: this model has layers 0 to {n_layers - 1}")
    means = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    return RefusalDirection(
        vectors=means.astype(np.float32),
        layer=chosen,
        split_half=stats.split_half_cosine(a[:, chosen], b[:, chosen]),
        source=checkpoint.source,
        precision=checkpoint.quant.precision,
        kernel=checkpoint.kernel,
        model_digest=checkpoint.digest,
        harmful_digest=harmful.digest,
        harmless_digest=harmless.digest,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
    )


def causal_check(
    checkpoint: Checkpoint,
    direction: RefusalDirection,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    instrument: str = "hard",
    max_new_tokens: int = 32,
    seed: int = 0,
) -> CausalCheck:
    """Does the direction carry refusal? Ablate it on harmful prompts, add it on harmless ones."""

    def rate(prompts: EncodedPrompts, interventions: Sequence[Intervention] = ()) -> Rate:
        with open_engine(checkpoint, interventions=interventions) as engine:
            answers = engine.generate(prompts.ids, max_new_tokens=max_new_tokens)
        return refusal_rate([answer.text for answer in answers], instrument)

    real = torch.from_numpy(direction.vector)
    control = torch.from_numpy(random_orthogonal(direction.vector, seed))
    return CausalCheck(
        instrument=instrument,
        harmful=rate(harmful),
        harmful_ablated=rate(harmful, [Ablate(real)]),
        harmful_ablated_random=rate(harmful, [Ablate(control)]),
        harmless=rate(harmless),
        harmless_added=rate(harmless, [Add(real, layer=direction.layer)]),
        harmless_added_random=rate(harmless, [Add(control, layer=direction.layer)]),
    )


def random_orthogonal(vector: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """A random vector orthogonal to `vector` and of its length, shape (width,)."""
    target = vector.astype(np.float64)
    draw = np.random.default_rng(seed).normal(size=target.shape)
    draw -= target * (draw @ target) / (target @ target)
    scaled: NDArray[np.float64] = draw * np.linalg.norm(target) / np.linalg.norm(draw)
    return scaled.astype(np.float32)


def run(
    checkpoint: Checkpoint,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    *,
    eval_harmful: EncodedPrompts,
    eval_harmless: EncodedPrompts,
    layer: int | None = None,
    baseline: RefusalDirection | None = None,
    causal: bool = True,
    instrument: str = "hard",
    max_new_tokens: int = 32,
) -> RefusalDirectionResult:
    """Fit the direction on one split, measure it on another.

    Args:
        checkpoint: The cell, with a graph to hook.
        harmful: Fitting prompts.
        harmless: Fitting prompts, ideally the twins of the harmful ones.
        eval_harmful: Held-out prompts; none of them may be a fitting prompt.
        eval_harmless: Held-out prompts.
        layer: The block whose input is read; None takes the baseline's, else 65 % depth.
        baseline: The baseline's direction, fitted on the same token ids.
        causal: Generate under ablation and addition.
        instrument: Names the refusal instrument that reads the generations.
        max_new_tokens: Of each generation.

    Raises:
        CheckpointError: The cell is a native GGUF.
        ParityError: The baseline was fitted on other token ids.
        PromptFileError: Fitting and held-out prompts overlap.
    """
    if checkpoint.module is None:
        raise CheckpointError(f"{checkpoint.source}: a probe needs the dense kernel for a GGUF")
    for fitted, held in ((harmful, eval_harmful), (harmless, eval_harmless)):
        if shared := set(fitted.ids) & set(held.ids):
            raise PromptFileError(
                f"{len(shared)} prompts are in both the fitting and held-out split"
            )
    if baseline is not None:
        require_parity(baseline.harmful_digest, harmful.digest, "refusal direction, harmful")
        require_parity(baseline.harmless_digest, harmless.digest, "refusal direction, harmless")
        layer = baseline.layer if layer is None else layer
    direction = fit(checkpoint, harmful, harmless, layer=layer)
    at = direction.layer
    a = block_inputs(checkpoint, eval_harmful)[:, at].astype(np.float64)
    b = block_inputs(checkpoint, eval_harmless)[:, at].astype(np.float64)
    own = direction.unit.astype(np.float64)
    missing = [] if baseline else ["comparison with a baseline: none was given"]
    if not causal:
        missing.append("causal check: switched off")
    other = None if baseline is None else baseline.vectors[at].astype(np.float64)
    other_norm = None if other is None else float(np.linalg.norm(other))
    floor = None
    if baseline is not None and baseline.layer == at:
        floor = baseline.split_half
    elif baseline is not None:
        missing.append(f"noise floor of the cosine: the baseline measured layer {baseline.layer}")
    return RefusalDirectionResult(
        direction=direction,
        auc=stats.auroc(a @ own, b @ own),
        dprime=stats.dprime(a @ own, b @ own),
        auc_on_baseline=None if other is None else stats.auroc(a @ other, b @ other),
        dprime_on_baseline=None if other is None else stats.dprime(a @ other, b @ other),
        cosine=None if other is None else stats.cosine(direction.vector, other),
        cosine_floor=floor,
        norm_ratio=direction.norm / other_norm if other_norm else None,
        n_harmful=len(a),
        n_harmless=len(b),
        causal=causal_check(
            checkpoint,
            direction,
            eval_harmful,
            eval_harmless,
            instrument=instrument,
            max_new_tokens=max_new_tokens,
        )
        if causal
        else None,
        not_measured=tuple(missing),
    )
