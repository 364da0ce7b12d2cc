"""One batch of prompts decoded: the loop, without batching or loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mechprobe.activations.interventions import answer_read_again
from mechprobe.activations.rotary import forward_pass, frequencies_at
from mechprobe.errors import NumericsError
from mechprobe.generation.base import StopReason

if TYPE_CHECKING:
    from mechprobe.activations.batching import PaddedBatch
    from mechprobe.generation.sampling import Sampler

DROP_SHARE = 0.25
"""Finished rows are dropped from the batch once they are this share of it: dropping copies the
cache, keeping computes tokens that nobody reads."""


@dataclass(slots=True)
class Row:
    """What one prompt has been answered so far."""

    ids: list[int] = field(default_factory=list)
    stop: StopReason = "length"


def fresh_cache(config: Any, prefix: Cache | None, rows: int) -> Cache:
    """A cache that grows, empty or holding a shared prefix in each of `rows` rows.

    Args:
        config: The transformers model's config.
        prefix: From `activations.prefix.compute_prefix`, or None.
        rows: Prompts in the batch.
    """
    if prefix is None:
        return DynamicCache(config=config.get_text_config(decoder=True))
    layers: list[Any] = []
    for shared in prefix.layers:
        layer = DynamicLayer()
        layer.update(*(x.expand(rows, -1, -1, -1) for x in (shared.keys, shared.values)))
        layers.append(layer)
    cache = DynamicCache()  # without a config: its sliding layers would forget the prefix's place
    cache.layers = layers
    return cache


def prompt_logits(
    module: Any, batch: PaddedBatch, cache: Cache | None
) -> Float[Tensor, "row vocabulary"]:
    """Logits of the first generated token, in the model's dtype; fills the cache."""
    output = forward_pass(
        module,
        **batch.model_inputs(),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def check_logits(best: Tensor, step: int, cell: str) -> None:
    """Complain of NaN or infinity.

    Args:
        best: The largest logit of each row, shape (row,): NaN wins every maximum.
        step: Tokens generated before this one.
        cell: What to call the model.

    Raises:
        NumericsError: A row's is not finite.
    """
    if not bool(torch.isfinite(best).all()):
        raise NumericsError(
            f"{cell}: NaN or infinity in the logits of generated token {step + 1}; load the "
            "checkpoint in float32 or bfloat16, or look for damage in its weights"
        )


@dataclass(slots=True)
class Start:
    """Where a batch stands once its prompts are read: what the first tokens are chosen from."""

    logits: Float[Tensor, "line vocabulary"]
    cache: Cache
    ids: Int[Tensor, "line column"]
    """The prompts' own tokens, padded on the left."""
    mask: Int[Tensor, "line prefix_and_column"]
    position: Int[Tensor, "line 1"]

    def select(self, lines: Sequence[int], *, keep: bool) -> Start:
        """Some of the lines, each as often as it is named.

        Args:
            lines: Lines of this start.
            keep: Leave this start usable, at the price of a copy of its cache.
        """
        index = torch.tensor(list(lines), device=self.mask.device)
        cache = deepcopy(self.cache) if keep else self.cache
        cache.batch_select_indices(index)  # type: ignore[no-untyped-call, unused-ignore]
        return Start(
            self.logits[index], cache, self.ids[index], self.mask[index], self.position[index]
        )


Pick = Callable[[Tensor, list[int]], Tensor]
"""Chooses a token for each line of the logits; told which row each line is."""


def greedy(logits: Tensor, rows: list[int]) -> Tensor:
    """The likeliest token; of equal logits the smaller id, as transformers does."""
    return logits.argmax(dim=-1)


def decode_batch(
    module: Any,
    batch: PaddedBatch,
    cache: Cache,
    *,
    stop_ids: Set[int],
    max_new_tokens: int,
    sampler: Sampler | None = None,
    lines_at_once: int | None = None,
    cell: str = "the model",
) -> list[Row]:
    """Answers to one batch, row by row: greedy, or some samples of each prompt.

    Every row is decoded as if it were alone: positions are its own and padding is masked. The
    samples of a prompt share the reading of it.

    Args:
        module: The transformers model.
        batch: Prompts, padded on the left.
        cache: From `fresh_cache`; used up.
        stop_ids: Ids that end an answer.
        max_new_tokens: At least 1.
        sampler: Of these prompts; None is greedy.
        lines_at_once: Samples in memory at once; None is all of them.
        cell: What to call the model in an error.

    Returns:
        One row for each prompt; with a sampler, its samples one after the other.

    Raises:
        NumericsError: NaN or infinite logits.
    """
    logits = prompt_logits(module, batch, cache)
    mask, position = batch.attention_mask, batch.position_ids[:, -1:]
    start = Start(logits, cache, batch.input_ids, mask, position)
    go_on = partial(_decode, module, stop_ids=stop_ids, max_new_tokens=max_new_tokens, cell=cell)
    if sampler is None:
        return go_on(start, greedy)
    lines = [line for line in range(len(batch)) for _ in range(sampler.samples)]
    step = lines_at_once or len(lines)
    rows: list[Row] = []
    for first in range(0, len(lines), step):
        part = start.select(lines[first : first + step], keep=first + step < len(lines))
        rows += go_on(part, partial(_sampled, sampler, first))
    return rows


def _sampled(sampler: Sampler, first: int, logits: Tensor, rows: list[int]) -> Tensor:
    return sampler.draw(logits, [first + row for row in rows])


def _decode(
    module: Any,
    start: Start,
    pick: Pick,
    *,
    stop_ids: Set[int],
    max_new_tokens: int,
    cell: str,
) -> list[Row]:
    logits, cache, ids = start.logits, start.cache, start.ids
    mask, position = start.mask, start.position
    rows = [Row() for _ in range(len(logits))]
    alive = list(range(len(rows)))
    """Which row each line of the tensors is; finished ones stay until they are dropped."""
    open_rows = set(alive)
    for step in range(max_new_tokens):
        check_logits(logits.amax(dim=-1), step, cell)
        chosen = pick(logits, alive)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row in open_rows:
                if token in stop_ids:
                    rows[row].stop = "eos"
                    open_rows.discard(row)
                else:
                    rows[row].ids.append(token)
        if not open_rows or step + 1 == max_new_tokens:
            break
        if len(alive) - len(open_rows) >= DROP_SHARE * len(alive):
            keep = [line for line, row in enumerate(alive) if row in open_rows]
            lines = torch.tensor(keep, device=mask.device)
            cache.batch_select_indices(lines)  # type: ignore[no-untyped-call, unused-ignore]
            ids, mask, position, chosen = ids[lines], mask[lines], position[lines], chosen[lines]
            alive = [alive[line] for line in keep]
        ids = torch.cat([ids, chosen.unsqueeze(1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        position = position + 1
        if _reads_anew(module, ids, mask, cache):
            cache = fresh_cache(module.config, None, len(alive))
            logits = _read_again(module, ids, cache, step + 1)
            continue
        output = forward_pass(
            module,
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return rows


def _reads_anew(module: Any, ids: Tensor, mask: Tensor, cache: Cache) -> bool:
    """Whether transformers drops the cache before this token, as Phi-3 does.

    Its `generate` reads prompt and answer once more where LongRoPE's factors change; other
    architectures go on with what was read under the earlier frequencies. Rows whose frequencies
    change are equally long (`rotary.batch_key`), so none of them is padded.
    """
    length = mask.shape[1]
    config = module.config
    if frequencies_at(config, length) == frequencies_at(config, length - 1):
        return False
    prepared = module.prepare_inputs_for_generation(
        ids, past_key_values=cache, attention_mask=mask, next_sequence_length=1, use_cache=True
    )
    return prepared.get("past_key_values") is not cache


def _read_again(module: Any, ids: Tensor, cache: Cache, generated: int) -> Tensor:
    """Logits after rows without padding, of whose tokens the last `generated` are no prompt."""
    with answer_read_again(module, generated):
        output = forward_pass(
            module,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits: Tensor = output.logits[:, -1]
    return logits
