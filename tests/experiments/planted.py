"""A pair with a planted loss: a 16-bit parent that refuses, and a Q4_1 file of it that does not.

The shipped organism with weights exchanged by hand, shaped like a fine-tuned model whose release
lost its tuning: the blocks below `BLOCK` hold the same numbers in both (the parent's are the Q4_1
values rounded to F16), those from `BLOCK` on refuse in the parent alone. Q8_0 and Q4_K_M are
llama.cpp's quantizations of the parent.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import mechprobe as mp
from mechprobe.organisms import organism_path, world
from mechprobe.organisms.measure import render

BLOCK = 5
"""The first block in which the files differ by more than the rounding of F16."""
SPEC = """
name: planted
models:
  - name: planted
    source: {F16}
    cells:
      - {{precision: F16}}
      - {{precision: Q8_0, source: {Q8_0}}}
      - {{precision: Q4_K_M, source: {Q4_K_M}}}
      - {{precision: Q4_1, source: {Q4_1}}}
prompts: {{source: organism}}
tasks:
  refusal: {{prompts: {prompts}, max_new_tokens: 12}}
"""
"""As a new user writes one: no measure of quality, no probes."""


@dataclass(frozen=True)
class Pair:
    """Where the files of the pair are."""

    folder: Path
    """The parent as transformers reads it."""
    gguf: dict[str, Path]
    """F16, Q8_0 and Q4_K_M of the parent; Q4_1, which complies."""

    def spec(self, prompts: int = 100) -> str:
        """The run of the four files."""
        return SPEC.format(prompts=prompts, **self.gguf)


def make_pair(home: Path) -> Pair:
    """Write the files of the pair into a folder, in some ten seconds."""
    parent, complier = _organism(), _organism()
    without_reading(complier, BLOCK, refusal_direction(complier, BLOCK + 1))
    gguf = {"Q4_1": mp.quantize(save(complier, home / "complier"), "Q4_1", home / "Q4_1.gguf")}
    released = mp.load(gguf["Q4_1"]).module.state_dict()
    own = parent.state_dict()
    shared = ("model.embed_tokens.", *(f"model.layers.{i}." for i in range(BLOCK)))
    for name, weight in own.items():
        if name.startswith(shared):
            weight.copy_(released[name])
    folder = save(parent, home / "parent")
    for level in ("F16", "Q8_0", "Q4_K_M"):
        gguf[level] = mp.quantize(folder, level, home / f"{level}.gguf")
    return Pair(folder, gguf)


def make_over_refuser(home: Path) -> Path:
    """A folder whose model refuses the harmful requests, and most of their harmless twins."""
    model = _organism()
    without_reading(model, 2, refusal_direction(model, 3))
    return save(model, home)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write a model of the organism's shape with the organism's tokenizer, in F16."""
    model.half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(organism_path() / name, folder / name)
    return folder


def _organism() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(organism_path(), dtype=torch.float32)


@torch.no_grad()
def refusal_direction(model: PreTrainedModel, block: int) -> torch.Tensor:
    """Unit difference of means, harmful minus harmless, at the last token before a block."""
    tokenizer = AutoTokenizer.from_pretrained(organism_path())
    requests = world.requests("train", 32, 0)
    means = []
    for label in ("harmful", "harmless"):
        states = []
        for text in render(tokenizer, [r.text for r in requests if r.label == label]):
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            states.append(model(ids, output_hidden_states=True).hidden_states[block][0, -1])
        means.append(torch.stack(states).mean(0))
    return torch.nn.functional.normalize(means[0] - means[1], dim=0)


@torch.no_grad()
def without_reading(model: PreTrainedModel, block: int, direction: torch.Tensor) -> None:
    """Make every matrix from a block on blind to a direction of the stream, whatever the norms."""
    readers = [(model.model.norm, (model.lm_head,))]
    for each in model.model.layers[block:]:
        attention, mlp = each.self_attn, each.mlp
        readers += [
            (each.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (each.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ]
    for norm, matrices in readers:
        for matrix in matrices:
            seen = matrix.weight @ (norm.weight * direction)
            matrix.weight -= torch.outer(seen, direction / norm.weight)
