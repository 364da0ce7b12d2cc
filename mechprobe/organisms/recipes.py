"""The organisms by name: which architecture, how large, how long trained, how stressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechprobe.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT = "llama-s"


@dataclass(frozen=True, slots=True)
class Stress:
    """The weight-outlier stressor's parameters; see `mechprobe.organisms.stressor`."""

    scale: float
    """Factor s; a power of two leaves float16 weights exact."""
    every: int
    """One channel in this many is scaled."""
    seed: int
    """Chooses which channel of each run of `every`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that makes one organism, but its random seed."""

    name: str
    architecture: str
    """transformers' `model_type`."""
    layers: int
    intermediate: int
    kv_heads: int
    steps: int
    seed: int
    batch: int = 96
    learning_rate: float = 1e-3
    hidden: int = 256
    heads: int = 4
    exits: int = 3
    """Of the last blocks, how many may be skipped in training; see `perturb`."""
    noise: float = 0.8
    """Stream noise at answer tokens, at most, relative to the stream."""
    stress: Stress | None = None


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("llama-s", "llama", 8, 256, 2, steps=1000, seed=1, stress=Stress(16.0, 48, 1)),
        Recipe("llama-m", "llama", 10, 256, 2, steps=1000, seed=1, stress=Stress(8.0, 32, 2)),
        Recipe("qwen2-s", "qwen2", 8, 256, 2, steps=1000, seed=1, stress=Stress(16.0, 48, 1)),
        Recipe("qwen2-m", "qwen2", 10, 256, 2, steps=1000, seed=1, stress=Stress(8.0, 32, 2)),
        Recipe("phi-s", "phi", 8, 512, 4, steps=1000, seed=1),
        Recipe("mistral-s", "mistral", 8, 256, 2, steps=1000, seed=3, stress=Stress(16.0, 64, 3)),
    )
}
"""Every input width is a multiple of 256, so that k-quants and groups of 128 apply everywhere."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        CheckpointError: There is no such organism.
    """
    try:
        return RECIPES[name]
    except KeyError:
        known = ", ".join(sorted(RECIPES))
        raise CheckpointError(f"no organism is called {name!r}; there are: {known}") from None


def build_model(
    recipe: Recipe, vocabulary: int, *, bos: int, eos: int, pad: int
) -> PreTrainedModel:
    """The recipe's model with fresh float32 weights, drawn from torch's current seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "max_position_embeddings": 512,
        "initializer_range": recipe.hidden**-0.5,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if recipe.architecture == "mistral":
        options["sliding_window"] = None
    if recipe.architecture in ("llama", "mistral"):
        options["head_dim"] = recipe.hidden // recipe.heads
    config = AutoConfig.for_model(recipe.architecture, **options)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    return model
