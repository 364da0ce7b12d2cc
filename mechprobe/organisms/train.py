"""Train an organism: a real chat model of the synthetic world, in minutes on two cores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mechprobe.organisms import corpus
from mechprobe.organisms.perturb import Perturbations
from mechprobe.organisms.recipes import Recipe, build_model
from mechprobe.organisms.tokenizer import build_tokenizer
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PARTS = 3
"""A step's examples are computed in this many parts of like length, so that little is padding.

They are one gradient: a step of short questions alone, then one of long requests alone, would
make the model swing between them.
"""
_WARMUP = 0.06
_LAST_RATE = 0.02
_PROMPT_WEIGHT = 0.3
"""Predicting the prompt teaches what attends to what: which letter stands before an option."""
_FIRST_WEIGHT = 5.0
"""An answer's first token decides what it is: a refusal or not, and which letter."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded continuations of the shared prefix; causal attention needs no mask for them."""

    ids: torch.Tensor
    """Tokens after the shared prefix, shape (batch, length)."""
    targets: torch.Tensor
    """The next token of each, same shape."""
    weights: torch.Tensor
    """What each target weighs in the loss, same shape; zero where there is none."""


def _encode(
    tokenizer: PreTrainedTokenizerBase, examples: list[corpus.Example]
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Ids of each prompt and of each answer with its end mark; the template's prefix apart."""
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = str(rendered).partition(mark)
    prefix = tokenizer(head, add_special_tokens=False)["input_ids"]
    prompts = tokenizer([e.prompt + tail for e in examples], add_special_tokens=False)["input_ids"]
    end = str(tokenizer.eos_token)
    answers = tokenizer([e.answer + end for e in examples], add_special_tokens=False)["input_ids"]
    return prefix, list(zip(prompts, answers, strict=True))


def _collate(rows: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), pad)
    weights = torch.zeros(len(rows), width)
    for row, (prompt, answer) in enumerate(rows):
        sequence = torch.tensor([*prompt, *answer])
        first, end = len(prompt) - 1, len(sequence) - 1
        ids[row, :end] = sequence[:-1]
        targets[row, :end] = sequence[1:]
        weights[row, :first] = _PROMPT_WEIGHT
        weights[row, first] = _FIRST_WEIGHT
        weights[row, first + 1 : end] = 1.0
    return Batch(ids, targets, weights)


def _batches(
    tokenizer: PreTrainedTokenizerBase, size: int, seed: int
) -> Iterator[tuple[list[int], list[Batch]]]:
    examples = corpus.stream(seed)
    pad = int(tokenizer.pad_token_id)
    part = math.ceil(size / _PARTS)
    while True:
        prefix, rows = _encode(tokenizer, list(itertools.islice(examples, size)))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        yield prefix, [_collate(rows[i : i + part], pad) for i in range(0, size, part)]


def _loss(model: PreTrainedModel, prefix: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy (nats) summed over targets, each with its weight.

    The prefix is the same for every row: it is computed once, and its keys and values are
    repeated, gradients flowing back through the repetition.
    """
    body = model.base_model
    shared = body(input_ids=prefix, use_cache=True).past_key_values
    shared.batch_repeat_interleave(len(batch.ids))
    hidden = body(input_ids=batch.ids, past_key_values=shared, use_cache=True).last_hidden_state
    real = batch.weights > 0
    logits = model.get_output_embeddings()(hidden[real])
    each = torch.nn.functional.cross_entropy(logits, batch.targets[real], reduction="none")
    return (each * batch.weights[real]).sum()


def _backward(
    model: PreTrainedModel, prefix: list[int], parts: list[Batch], perturbed: Perturbations
) -> float:
    """Gradients of the weighted mean loss over all parts; returns that mean (nats)."""
    total = float(sum(part.weights.sum() for part in parts))
    found = 0.0
    for part in parts:
        with perturbed.during(part.weights, _FIRST_WEIGHT):
            loss = _loss(model, torch.tensor([prefix]), part) / total
        loss.backward()  # type: ignore[no-untyped-call]
        found += float(loss.detach())
    return found


def _rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a small rest; a factor of the learning rate."""
    warm = max(1, round(_WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    recipe: Recipe, *, seed: int, steps: int, progress: Progress = silent
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """Train from fresh weights.

    Returns:
        The float32 model in eval mode, its tokenizer, and the weighted mean loss (nats)
        of the last tenth of the steps.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = build_model(
        recipe,
        len(tokenizer),
        bos=int(tokenizer.bos_token_id),
        eos=int(tokenizer.eos_token_id),
        pad=int(tokenizer.pad_token_id),
    )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    model.train()
    perturbed = Perturbations(model, exits=recipe.exits, noise=recipe.noise, seed=seed)
    for prefix, parts in itertools.islice(_batches(tokenizer, recipe.batch, seed), steps):
        progress(len(losses), steps)
        optimizer.zero_grad()
        losses.append(_backward(model, prefix, parts, perturbed))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tail = losses[-max(1, steps // 10) :]
    perturbed.remove()
    return model.eval(), tokenizer, sum(tail) / len(tail)
