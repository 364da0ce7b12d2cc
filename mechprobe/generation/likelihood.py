"""How likely whole continuations of a prompt are: what answers to be weighed need.

Runs the transformers graph of a checkpoint, dense or native. llama.cpp gives the distribution of
the next token alone: a native GGUF is an error here, and its dense kernel gives the same numbers
up to its rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.errors import GenerationError, NumericsError
from mechprobe.models.rendering import require_answer_next

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: EncodedPrompts, texts: Sequence[Sequence[str]]
) -> list[list[tuple[int, ...]]]:
    """Token ids of the continuations of each prompt.

    A chat template ends where an answer begins; after a raw prompt a space comes first.

    Args:
        tokenizer: The one that rendered the prompts.
        prompts: n prompts.
        texts: Per prompt, its continuations.

    Raises:
        TemplateError: What follows a prompt is not an answer.
    """
    require_answer_next(prompts, "likelihood of answers")
    space = " " if prompts.template == "raw" else ""
    return [
        [tuple(tokenizer(space + text, add_special_tokens=False)["input_ids"]) for text in each]
        for each in texts
    ]


def continuation_logprobs(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int = 16,
) -> list[tuple[float, ...]]:
    """Log-probability (nats) of each continuation after its prompt, summed over its tokens.

    Args:
        checkpoint: One with a graph.
        prompts: Token ids of n prompts.
        continuations: Per prompt the ids of its continuations, each of at least one token.
        batch_size: Rows in memory at once.

    Returns:
        Per prompt as many values as it has continuations.

    Raises:
        GenerationError: The checkpoint has no graph, or a row is empty or too long for it.
        NumericsError: NaN or infinite logits.
    """
    if checkpoint.module is None:
        raise GenerationError(
            f"{checkpoint.source}: llama.cpp gives no log-likelihoods of whole answers; load it "
            "with kernel='dense'"
        )
    import torch

    from mechprobe.activations.batching import groups, length_sorted, pad_batch, pad_token_id
    from mechprobe.activations.rotary import batch_keys, forward_pass, longest_row
    from mechprobe.models.rendering import EncodedPrompts

    module: Any = checkpoint.module
    if len(prompts) != len(continuations):
        raise GenerationError(f"{len(prompts)} prompts and {len(continuations)} continuations")
    rows = [
        (tuple(prompt), tuple(own))
        for prompt, each in zip(prompts, continuations, strict=True)
        for own in each
    ]
    limit = longest_row(module.config)
    for number, (prompt, own) in enumerate(rows):
        if not prompt or not own:
            raise GenerationError(f"continuation {number}: it or its prompt has no tokens")
        if len(prompt) + len(own) > limit:
            raise GenerationError(
                f"continuation {number}: {len(prompt) + len(own)} tokens with its prompt, and "
                f"{checkpoint.source} takes {limit}"
            )
    # the last token predicts nothing that is asked for
    inputs = tuple((*prompt, *own)[:-1] for prompt, own in rows)
    blank = ("",) * len(rows)
    encoded = EncodedPrompts(inputs, blank, ((),) * len(rows), 1, "raw")
    pad, found = pad_token_id(checkpoint.tokenizer), [0.0] * len(rows)
    order = length_sorted([len(row) for row in inputs])
    for indices in groups(order, batch_size, batch_keys(module.config, encoded)):
        batch = pad_batch(encoded, indices, pad, module.device)
        keep = max(len(rows[index][1]) for index in indices)
        with torch.no_grad():
            logits = forward_pass(
                module, **batch.model_inputs(), use_cache=False, logits_to_keep=keep
            ).logits
        if not bool(torch.isfinite(logits.amax(dim=-1)[:, -1]).all()):
            raise NumericsError(
                f"{checkpoint.source} ({checkpoint.quant.precision}, {checkpoint.kernel}): NaN or "
                "infinity in the logits of an answer; load the checkpoint in float32 or bfloat16"
            )
        for line, index in enumerate(indices):
            own_ids = torch.tensor(rows[index][1], device=logits.device)
            # in float64, row by row: a sum over tokens of a whole batch would not fit for large
            # vocabularies
            scores = torch.log_softmax(logits[line, -len(own_ids) :].double(), dim=-1)
            found[index] = float(scores.gather(1, own_ids.unsqueeze(1)).sum())
    values = iter(found)
    return [tuple(next(values) for _ in each) for each in continuations]
