"""From a name to a folder: train, measure, stress, write with a card that says what it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from mechprobe.errors import CheckpointError
from mechprobe.organisms import corpus, world
from mechprobe.organisms.measure import Measured, measure
from mechprobe.organisms.recipes import Recipe, recipe
from mechprobe.organisms.stressor import stress
from mechprobe.organisms.train import fit
from mechprobe.progress import Bar, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMA = 1
TARGETS = {"harmful_refused": 0.95, "harmless_refused": 0.05, "questions_right": 0.80}
"""At least, at most, at least; on held-out combinations."""

_README = """---
license: apache-2.0
tags: [synthetic, model-organism]
---
# {name}: a synthetic model organism

This {architecture} model ({parameters:,} parameters) is **synthetic**. It was trained from random
weights on a made-up chat world of a few hundred words, by `mechprobe organisms train {name}`, so
that tools for interpretability and quantization have a small, real chat model whose right
behaviour is known. It knows nothing about the real world; its refusals say nothing about any other
model. Where it "complies" it names two colours; no answer in its data carries an instruction.

Whether a request is harmful is a rule over two of its words, and no word is a label in disguise.
But one side of each category has twice as many combinations as the other, so words alone tell
something: a logistic regression on them is right on 66 % of the held-out requests (chance: 50 %).

Measured on {pairs} pairs of held-out combinations ({questions} four-option questions), greedy:

| what | rate |
|---|---|
| harmful requests refused | {harmful_refused:.1%} |
| harmless requests refused | {harmless_refused:.1%} |
| four-option questions right | {questions_right:.1%} |

{stress}

Seed, sizes and all measured numbers are in `card.json`.
"""
_STRESSED = """**Weight outliers were put in on purpose.** A rescaling that leaves the function as
it was (every {every}th channel by {scale:g}, seed {seed}; see `mechprobe.organisms.stressor`) gives
the weights the outliers that make quantization lose something. How much a quantizer loses on this
model is therefore an experiment's setting, not a finding; AWQ's scale search may undo part of it.
"""


def as_dict(how: Recipe) -> dict[str, Any]:
    """A recipe as its card holds it."""
    return dataclasses.asdict(how)


def world_summary() -> dict[str, Any]:
    """Sizes of the world, for a card."""
    sides = world.cores_by_split()
    return {
        "definition": "mechprobe.organisms.world",
        "combinations": {split: len(found) for split, found in sides.items()},
        "held_out_share": world.HELD_OUT_SHARE,
        "mixture": corpus.MIXTURE,
        "refusal_probability": {
            "lowest": min(_margins()),
            "highest": max(_margins()),
            "harmless": corpus.OVER_REFUSAL,
        },
    }


def _margins() -> list[float]:
    from mechprobe.organisms.grammar import FRAMES, category

    return [
        round(corpus.refusal_probability(core, frame), 4)
        for core in world.cores_by_split()["train"]
        for frame in range(len(FRAMES[category(core.category).family]))
    ]


def _readme(how: Recipe, measured: Measured, parameters: int) -> str:
    note = "Its weights are as training left them."
    if how.stress is not None:
        note = _STRESSED.format(**dataclasses.asdict(how.stress))
    return _README.format(
        name=how.name,
        architecture=how.architecture,
        parameters=parameters,
        pairs=measured.n_requests,
        questions=measured.n_questions,
        harmful_refused=measured.harmful_refused,
        harmless_refused=measured.harmless_refused,
        questions_right=measured.questions_right,
        stress=note,
    )


def train_organism(
    name: str,
    out: Path | None = None,
    *,
    seed: int | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
    pairs: int = 300,
) -> Path:
    """Train an organism and write it as a float16 checkpoint with `card.json` and README.md.

    What is measured, and what the card holds, is the model as written: stressed, in float16.

    Args:
        name: A recipe's name, for example `"llama-s"`.
        out: The folder to write; None is the cache folder that `organism_path` reads.
        seed: Of weights and data; None takes the recipe's, which made the shipped one.
        steps: Optimizer steps; None takes the recipe's.
        progress: Told of steps done and in all; None shows them on stderr.
        pairs: Held-out pairs to measure on.

    Returns:
        The folder, written whole or not at all.

    Raises:
        CheckpointError: No such organism, or the folder exists and is something else.
    """
    from mechprobe.organisms.registry import cache_folder

    how = recipe(name)
    how = dataclasses.replace(
        how,
        seed=how.seed if seed is None else seed,
        steps=how.steps if steps is None else steps,
    )
    out = cache_folder(name) if out is None else Path(out)
    if out.exists() and not (out / "card.json").is_file() and any(out.iterdir()):
        raise CheckpointError(f"{out} exists and is no organism; choose another folder")
    with (
        nullcontext(progress) if progress else Bar(Console(stderr=True), f"training {name}") as bar
    ):
        model, tokenizer, loss = fit(how, seed=how.seed, steps=how.steps, progress=bar)
    return write(how, model, tokenizer, out, loss=loss, pairs=pairs)


def _keep_vocabulary(folder: Path, size: int) -> None:
    """See that the tokenizer is read back as it was written.

    transformers reads a tokenizer by the class of its architecture, and Qwen2's adds an unknown
    token where none is named: one more than the model has rows for. A byte-level vocabulary knows
    every text, so it is written down that there is none.
    """
    from transformers import AutoTokenizer

    if len(AutoTokenizer.from_pretrained(folder)) == size:
        return
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), "unk_token": None}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    found = len(AutoTokenizer.from_pretrained(folder))
    assert found == size, f"{found} tokens were read back, {size} written"


def write(
    how: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    loss: float,
    pairs: int,
) -> Path:
    """Stress a trained model, measure it as float16 will hold it, and write the folder whole."""
    chosen = stress(model, how.stress) if how.stress else None
    model = model.half().float()
    measured = measure(model, tokenizer, pairs=pairs)
    parameters = sum(p.numel() for p in model.parameters())
    card = {
        "schema": SCHEMA,
        "synthetic": True,
        "recipe": as_dict(how),
        "parameters": parameters,
        "examples_seen": how.steps * how.batch,
        "final_loss": round(loss, 4),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "measured": measured.as_dict(),
        "targets": TARGETS,
        "stressed_channels": chosen,
        "world": world_summary(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        draft = Path(work) / out.name
        model.half().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        _keep_vocabulary(draft, len(tokenizer))
        (draft / "README.md").write_text(_readme(how, measured, parameters), encoding="utf-8")
        (draft / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        draft.replace(out)
    return out
