"""One pass over many prompts, batch by batch, in constant memory.

Everything that looks at activations of more prompts than fit in memory goes through `stream`: the
capture into a store, and probes that reduce as they go. It sorts by length, pads, shares the
common prefix, records, stops early, and halves its batches where memory does not suffice.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.activations.batching import (
    PaddedBatch,
    groups,
    length_sorted,
    pad_batch,
    pad_token_id,
)
from mechprobe.activations.forward import (
    Positions,
    Recorder,
    last_logits,
    normalize_positions,
    recorder,
)
from mechprobe.activations.interventions import (
    Intervention,
    Patch,
    active,
    applied,
    prompt_rows,
)
from mechprobe.activations.points import HookPoint, graph_of, resolve_points
from mechprobe.activations.prefix import Sharing, compute_prefix, plan_sharing
from mechprobe.activations.restart import Restart
from mechprobe.activations.rotary import batch_keys
from mechprobe.errors import HookNameError, NumericsError, VocabularyError

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

Points = str | Sequence[str] | Sequence[HookPoint]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one batch gave; rows are prompts."""

    indices: tuple[int, ...]
    """Which prompt each row is."""
    values: dict[str, Float[Tensor, "row position width"]]
    """By hook point, on the model's device and in its dtype."""
    logits: Float[Tensor, "row vocabulary"] | None
    """Of the last position, in the model's dtype; None unless asked for."""


def as_points(checkpoint: Checkpoint, points: Points) -> tuple[HookPoint, ...]:
    """Hook points from patterns, or as they are.

    Raises:
        HookNameError: A pattern matches nothing, or a name comes twice.
    """
    if not isinstance(points, str) and all(isinstance(point, HookPoint) for point in points):
        chosen = tuple(point for point in points if isinstance(point, HookPoint))
    else:
        names = [points] if isinstance(points, str) else [str(point) for point in points]
        chosen = resolve_points(checkpoint, names)
    if len({point.name for point in chosen}) != len(chosen):
        raise HookNameError("a hook point was given twice")
    return chosen


def check_reach(prompts: EncodedPrompts, positions: Sequence[int] | None) -> None:
    """Raise unless every prompt is long enough for every position.

    Raises:
        HookNameError: Names the shortest prompt.
    """
    deepest = -min(positions) if positions else 1
    shortest = min(range(len(prompts)), key=lambda i: len(prompts.ids[i]))
    if len(prompts.ids[shortest]) < deepest:
        raise HookNameError(
            f"position -{deepest} lies before the start of prompt {shortest}, which has "
            f"{len(prompts.ids[shortest])} tokens; ask for fewer positions"
        )


def check_ids(checkpoint: Checkpoint, prompts: Iterable[Sequence[int]]) -> None:
    """Raise unless the model has every token of the prompts.

    Raises:
        VocabularyError: The prompts were rendered with another model's tokenizer.
    """
    rows = graph_of(checkpoint)[0].get_input_embeddings().weight.shape[0]
    for number, ids in enumerate(prompts):
        if (wrong := next((i for i in ids if not 0 <= i < rows), None)) is not None:
            raise VocabularyError(
                f"prompt {number} holds the token id {wrong} and {checkpoint.source} has "
                f"{rows} tokens; render the prompts with this model's tokenizer"
            )


def sharing_for(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    positions: Sequence[int] | None,
    interventions: Sequence[Intervention] = (),
) -> Sharing:
    """How much of the common prefix a pass may share, under the interventions it runs with.

    The prefix is run under `Ablate` and `Add`, which act at all positions. A `Patch` names places
    counted from the end of a prompt: those are each prompt's own, and so is what follows them.
    """
    model, _ = graph_of(checkpoint)
    if positions is None:
        return plan_sharing(model.config, prompts, None)
    patches = [x for x in (*interventions, *active(checkpoint)) if isinstance(x, Patch)]
    places = [*positions, *(place for patch in patches for place in patch.positions)]
    return plan_sharing(model.config, prompts, -min(places))


def stream(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    points: Points,
    positions: Positions = "last",
    *,
    batch_size: int = 16,
    share_prefix: bool = True,
    logits: bool = False,
    interventions: Sequence[Intervention] = (),
    batches: Sequence[Sequence[int]] | None = None,
    restart: Restart | None = None,
) -> Generator[Recorded, None, None]:
    """Run prompts through the model and yield what the hook points saw.

    Args:
        checkpoint: One with a graph.
        prompts: Any number; memory does not grow with it.
        points: Names, globs or raw paths, or points resolved already; may be empty with `logits`.
        positions: `last`, `all` (rows then begin with padding), or positions from the end.
        batch_size: Prompts in memory at once, halved where memory does not suffice.
        share_prefix: Compute the tokens that all prompts begin with once.
        logits: Also give the logits of the last position, computed for that position alone.
        interventions: Active during the pass, beside any that are active already.
        batches: Which prompts run together, in place of length-sorted batches of `batch_size`; cut
            where rotary frequencies differ, so that no prompt depends on its neighbours.
        restart: Where a pass without `interventions` is kept, and one with them begins. Points are
            recorded in whole passes, whatever it holds.

    Yields:
        One `Recorded` per batch, longest prompts first; together they hold each prompt once.
        Values are fresh tensors that the caller may keep or drop. Between batches hooks and
        interventions stay in the model: run nothing else through it, and close an iterator that
        is given up half-way (`contextlib.closing`).

    Raises:
        HookNameError: A point is unknown, or a position lies before a prompt's start.
        NumericsError: NaN or infinity at a point or in the logits, or no memory for one prompt.
    """
    model, _ = graph_of(checkpoint)
    chosen = as_points(checkpoint, points)
    places = normalize_positions(positions)
    check_ids(checkpoint, prompts)
    check_reach(prompts, places)
    sharing = Sharing(0)
    if share_prefix:
        sharing = sharing_for(checkpoint, prompts, places, interventions)
    if batches is None:
        batches = groups(length_sorted([len(row) for row in prompts.ids]), batch_size)
    keys = batch_keys(model.config, prompts)
    pad = pad_token_id(checkpoint.tokenizer)
    with ExitStack() as stack:
        stack.enter_context(applied(checkpoint, interventions))
        shared = prompts.ids[0][: sharing.tokens]
        kept = None if chosen else restart
        prefix = compute_prefix(model, shared) if shared and kept is None else None
        record = stack.enter_context(recorder(checkpoint, chosen, positions, stop=not logits))
        limit = max(map(len, batches), default=1)
        waiting = [run for batch in batches for run in groups(batch, limit, keys)][::-1]
        while waiting:
            rows = waiting.pop()
            if len(rows) > limit:
                waiting += reversed(groups(rows, limit))
                continue
            end = kept.end_of(rows) if kept and interventions else None
            if kept and end is None and shared and prefix is None:
                with kept.around(None, None, interventions):
                    prefix = compute_prefix(model, shared)
            batch, cache = end or (
                pad_batch(prompts, rows, pad, model.device, prefix=len(shared)),
                prefix,
            )
            around = kept.around(batch, cache, interventions) if kept else nullcontext(cache)
            with around as cache:
                found = _try(checkpoint, record, batch, cache, logits, places is None)
            if found is None:
                limit = _halve(prompts, rows)
                waiting.append(rows)
                continue
            yield found


def _halve(prompts: EncodedPrompts, rows: Sequence[int]) -> int:
    """Half the rows, once memory has been given back.

    Raises:
        NumericsError: There is only one row.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(rows) == 1:
        raise NumericsError(
            f"out of memory with prompt {rows[0]} alone ({len(prompts.ids[rows[0]])} tokens); "
            "use a shorter prompt, a smaller model or a machine with more memory"
        )
    return len(rows) // 2


def _try(
    checkpoint: Checkpoint,
    record: Recorder,
    batch: PaddedBatch,
    prefix: Cache | None,
    logits: bool,
    every_position: bool,
) -> Recorded | None:
    """One batch, or None where memory did not suffice."""
    inputs: dict[str, object] = {**batch.model_inputs()}
    if prefix is not None:
        inputs["past_key_values"] = prefix
    try:
        with prompt_rows(checkpoint, batch.indices, batch.prefix):
            last = last_logits(checkpoint, record, inputs) if logits else None
            if not logits:
                record.forward(**inputs, use_cache=False)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how PyTorch's CPU allocator says it
            raise
        return None
    record.check_finite(~batch.is_padding if every_position else None)
    if last is not None and not bool(torch.isfinite(last).all()):
        raise NumericsError(
            f"{checkpoint.source}: NaN or infinity in the logits; load it in float32 or bfloat16, "
            "or look for damage in its weights"
        )
    return Recorded(batch.indices, record.values, last)
