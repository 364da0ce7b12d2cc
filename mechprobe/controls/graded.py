"""Controls of organisms whose loss is graded by a knob, placed in one matrix, or none at all.

The knob is searched until the loss on the truth's own held-out requests is what was aimed for: the
truth is exact for these requests, and a screen asks some of them. Where no setting reaches the
target, the control is the nearest, and its truth says what it hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.controls.control import Control
from mechprobe.controls.truth import Truth
from mechprobe.controls.tuned import undo_stress
from mechprobe.organisms.recipes import RECIPES
from mechprobe.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIALS = 8
"""Settings of a knob that a search tries."""
NEAR = 1.0
"""Points from the target at which a search ends."""


def search(
    loss: Callable[[float], float], target: float, low: float, high: float, progress: Progress
) -> float:
    """Return the setting of those tried whose loss is nearest to the target, by bisection.

    Args:
        loss: Points lost at a setting; grows with it, as a rule.
        target: Points.
        low: Setting without a loss.
        high: Largest setting.
        progress: Told of trials done.
    """
    tried: dict[float, float] = {}
    setting = high
    for trial in range(TRIALS):
        progress(trial, TRIALS)
        tried[setting] = loss(setting)
        if abs(tried[setting] - target) <= NEAR:
            break
        if tried[setting] < target:
            if setting == high:
                break
            low = setting
        else:
            high = setting
        setting = (low + high) / 2
    return min(tried, key=lambda each: abs(tried[each] - target))


def _graded(
    row: Control,
    out: Path,
    progress: Progress,
    set_knob: Callable[[PreTrainedModel, float], None],
    bounds: tuple[float, float],
    done: str,
    where: tuple[str, ...],
) -> Truth:
    """Search a knob of a 16-bit control, write the checkpoint, read both behaviours."""
    import copy

    from mechprobe.controls.world_model import (
        PROMPTS,
        READER,
        base_behaviour,
        load_model,
        read_source,
        refused_share,
        save_model,
    )

    assert row.target is not None
    model, tokenizer = load_model(row.base)
    before = base_behaviour(row.base)

    def changed(setting: float) -> PreTrainedModel:
        other = copy.deepcopy(model)
        set_knob(other, setting)
        return other

    def loss(setting: float) -> float:
        return 100 * (before.refused - refused_share(changed(setting), tokenizer))

    knob = search(loss, row.target, *bounds, progress)
    save_model(changed(knob), row.base, out)
    forms = {"base": before, "control": read_source(str(out))}
    return Truth(done, where, READER, PROMPTS, forms, "base", {"knob": knob})


def build_mixture(row: Control, out: Path, progress: Progress) -> Truth:
    """Mix the weights of the base with those of the model that complies."""
    import torch

    from mechprobe.controls.world_model import load_model

    (other,) = row.needs
    complying = load_model(other)[0].state_dict()

    @torch.no_grad()
    def mix(model: PreTrainedModel, share: float) -> None:
        undo_stress(model, row.base)
        for name, weight in model.state_dict().items():
            weight.lerp_(complying[name], share)

    done = (
        f"Weights between the base (outliers undone) and {other}; the knob is the latter's share."
    )
    return _graded(row, out, progress, mix, (0.0, 1.0), done, ())


def build_noise(row: Control, out: Path, progress: Progress) -> Truth:
    """Add Gaussian noise to one matrix."""
    import torch

    @torch.no_grad()
    def disturb(model: PreTrainedModel, size: float) -> None:
        weight = model.get_parameter(row.place)
        draws = torch.Generator().manual_seed(row.seed)
        noise = torch.randn(weight.shape, generator=draws)
        weight.add_(size * weight.square().mean().sqrt() * noise)

    done = f"Gaussian noise in {row.place} alone; the knob is its size over the weights' RMS."
    return _graded(row, out, progress, disturb, (0.0, 6.0), done, (row.place,))


def build_outliers(row: Control, out: Path, progress: Progress) -> Truth:
    """Scale outlier channels, which leaves the 16-bit function as it was, until the level loses."""
    import copy
    from dataclasses import replace

    from mechprobe.controls.world_model import (
        PROMPTS,
        READER,
        load_model,
        read_levels,
        read_source,
        refused_share,
        save_model,
    )
    from mechprobe.organisms.recipes import recipe
    from mechprobe.organisms.stressor import stress

    assert row.target is not None and row.level is not None
    model, tokenizer = load_model(row.base)
    how = recipe(row.base.removeprefix("organism:")).stress
    assert how is not None, "a base that can be stressed"
    undo_stress(model, row.base)
    full = refused_share(model, tokenizer)

    def scaled(setting: float) -> PreTrainedModel:
        other = copy.deepcopy(model)
        stress(other, replace(how, scale=math.exp2(setting)))
        return other

    def loss(setting: float) -> float:
        other = scaled(setting)
        round_to(other, row.level or "")
        return 100 * (full - refused_share(other, tokenizer))

    knob = search(loss, row.target, 0.0, 7.0, progress)
    save_model(scaled(knob), row.base, out)
    forms = {"control": read_source(str(out)), **read_levels(out, (row.level,))}
    done = "Outlier channels scaled, the function kept; the knob is the scale's base-2 logarithm."
    return Truth(done, (), READER, PROMPTS, forms, "control", {"knob": knob})


def round_to(model: PreTrainedModel, level: str) -> None:
    """Round the matrices of all blocks and the embedding to a level's grid, in place.

    llama.cpp stores the head in more bits: it stays as it is.
    """
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[level]
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and not name.startswith("lm_head"):
            values = dequantize(quantize(weight.detach().numpy(), kind), kind)
            weight.data.copy_(torch.from_numpy(values))


def build_clean(row: Control, out: Path, progress: Progress) -> Truth:
    """Copy the base, outliers undone: its quantized form answers as it does."""
    from mechprobe.controls.world_model import (
        PROMPTS,
        READER,
        load_model,
        read_levels,
        read_source,
        save_model,
    )

    assert row.level is not None
    progress(0, 2)
    model, _ = load_model(row.base)
    undo_stress(model, row.base)
    save_model(model, row.base, out)
    own = read_source(str(out))
    progress(1, 2)
    forms = {"control": own, **read_levels(out, (row.level,))}
    return Truth("Outliers undone, the function kept.", (), READER, PROMPTS, forms, "control", {})


def _mixture(base: str, target: float) -> Control:
    return Control(
        f"{base}-mixture-{target:g}",
        "graded",
        f"organism:{base}",
        build_mixture,
        f"weights between {base} and {base}-complying, so that {target:g} points are lost",
        target=target,
        needs=(f"control:{base}-complying",),
        minutes=3,
    )


_WRITERS = ("mlp.down_proj", "self_attn.o_proj")
_PHI_WRITERS = ("mlp.fc2", "self_attn.dense")
"""Matrices that write into the residual stream."""


def _noise(base: str, number: int, target: float) -> Control:
    recipe = RECIPES[base]
    matrix = (_PHI_WRITERS if recipe.architecture == "phi" else _WRITERS)[number]
    place = f"model.layers.{recipe.layers // 2 - 1 + number}.{matrix}.weight"
    return Control(
        f"{base}-noise-{target:g}",
        "placed",
        f"organism:{base}",
        build_noise,
        f"noise in {place} alone, so that {target:g} points are lost",
        target=target,
        place=place,
        seed=number,
        minutes=3,
    )


def _outliers(base: str, target: float) -> Control:
    return Control(
        f"{base}-outliers-{target:g}",
        "graded",
        f"organism:{base}",
        build_outliers,
        f"outlier channels, so that Q4_0 loses {target:g} points and 16 bits none",
        target=target,
        level="Q4_0",
        minutes=4,
    )


def _clean(base: str, level: str) -> Control:
    return Control(
        f"{base}-clean-{level.lower().replace('_', '')}",
        "clean",
        f"organism:{base}",
        build_clean,
        f"{level} of the base without outliers: no refusals are lost",
        level=level,
    )


CONTROLS: tuple[Control, ...] = (
    *(_mixture(base, target) for base in RECIPES for target in (5.0, 10.0, 20.0, 50.0)),
    *(_mixture(base, 97.0) for base in ("llama-s", "qwen2-s")),
    *(_noise(base, n, target) for base in RECIPES for n, target in enumerate((20.0, 50.0))),
    *(_outliers(b, target) for b in RECIPES if RECIPES[b].stress for target in (10.0, 50.0)),
    *(_clean(base, level) for base in RECIPES for level in ("Q8_0", "Q6_K")),
)
