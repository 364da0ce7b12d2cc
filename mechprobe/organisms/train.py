"""Train an organism: a real chat model of the synthetic world, in minutes on two cores."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mechprobe.organisms import corpus
from mechprobe.organisms.progress import training_bar
from mechprobe.organisms.recipes import Recipe, build_model
from mechprobe.organisms.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POOL = 16
"""Batches that are drawn, sorted by length and shuffled together, so that little is padding."""
_WARMUP = 0.06
_LAST_RATE = 0.02
_IGNORED = -100
_FIRST_WEIGHT = 5.0
"""An answer's first token decides what it is: a refusal or not, and which letter."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded continuations of the shared prefix; causal attention needs no mask for them."""

    ids: torch.Tensor
    """Tokens after the shared prefix, shape (batch, length)."""
    targets: torch.Tensor
    """The next token where it belongs to an answer, -100 elsewhere; same shape."""


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
    targets = torch.full((len(rows), width), _IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        sequence = torch.tensor([*prompt, *answer])
        ids[row, : len(sequence) - 1] = sequence[:-1]
        targets[row, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    return Batch(ids, targets)


def _batches(
    tokenizer: PreTrainedTokenizerBase, size: int, seed: int
) -> Iterator[tuple[list[int], Batch]]:
    examples = corpus.stream(seed)
    shuffler = random.Random(f"batches/{seed}")
    pad = int(tokenizer.pad_token_id)
    while True:
        pool = list(itertools.islice(examples, size * _POOL))
        prefix, rows = _encode(tokenizer, pool)
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
        shuffler.shuffle(cuts)
        for cut in cuts:
            yield prefix, _collate(cut, pad)


def _loss(model: PreTrainedModel, prefix: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over answer tokens (nats), first tokens weighted.

    The prefix is the same for every row: it is computed once, and its keys and values are
    repeated, gradients flowing back through the repetition.
    """
    body = model.base_model
    shared = body(input_ids=prefix, use_cache=True).past_key_values
    shared.batch_repeat_interleave(len(batch.ids))
    hidden = body(input_ids=batch.ids, past_key_values=shared, use_cache=True).last_hidden_state
    answered = batch.targets != _IGNORED
    logits = model.get_output_embeddings()(hidden[answered])
    each = torch.nn.functional.cross_entropy(logits, batch.targets[answered], reduction="none")
    before = torch.nn.functional.pad(answered, (1, -1))
    weight = torch.where((answered & ~before)[answered], _FIRST_WEIGHT, 1.0)
    return (each * weight).sum() / weight.sum()


def _rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a small rest; a factor of the learning rate."""
    warm = max(1, round(_WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    recipe: Recipe, *, seed: int, steps: int, progress: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """Train from fresh weights.

    Returns:
        The float32 model in eval mode, its tokenizer, and the mean loss (nats per answer token)
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
    with training_bar(recipe.name, steps, progress) as advance:
        drawn = itertools.islice(_batches(tokenizer, recipe.batch, seed), steps)
        for prefix, batch in drawn:
            loss = _loss(model, torch.tensor([prefix]), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            advance(losses[-1])
    tail = losses[-max(1, steps // 10) :]
    return model.eval(), tokenizer, sum(tail) / len(tail)
