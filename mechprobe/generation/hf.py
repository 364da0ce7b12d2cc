"""Generation in the transformers graph: batched, the same text as one prompt at a time.

Prompts are sorted by length and padded on the left with explicit positions; the tokens they all
begin with are run once per call, and each prompt once for all of its samples. Interventions are
those given to the engine and whatever else is applied to the checkpoint while it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from mechprobe.activations.batching import (
    PaddedBatch,
    groups,
    length_sorted,
    pad_batch,
    pad_token_id,
)
from mechprobe.activations.interventions import (
    Intervention,
    Patch,
    active,
    applied,
    prompt_rows,
)
from mechprobe.activations.prefix import compute_prefix, plan_sharing
from mechprobe.activations.rotary import batch_keys, longest_row
from mechprobe.activations.streaming import check_ids
from mechprobe.errors import CheckpointError, GenerationError, NumericsError
from mechprobe.generation.answer_text import completion
from mechprobe.generation.base import Completion, FloatArray, Sampling, repeated
from mechprobe.generation.decoding import (
    check_logits,
    decode_batch,
    fresh_cache,
    prompt_logits,
)
from mechprobe.generation.graph import (
    cell_of,
    config_of,
    is_out_of_memory,
    name_the_layer,
    stop_ids,
)
from mechprobe.generation.sampling import Sampler
from mechprobe.models.memory import give_back
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from mechprobe.models.checkpoint import Checkpoint

T = TypeVar("T")


class TransformersEngine:
    """Runs a checkpoint that has a graph: dense weights of any format, or native AWQ and GPTQ."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch_size: int = 32,
        interventions: Sequence[Intervention] = (),
        share_prefix: bool = True,
    ) -> None:
        """Take a loaded checkpoint.

        Args:
            checkpoint: One with a graph.
            batch_size: Answers in memory at once; halved, for good, when memory runs out.
            interventions: Active in everything this engine runs.
            share_prefix: Run the prompts' common prefix once.

        Raises:
            CheckpointError: llama.cpp runs this checkpoint.
            GenerationError: The batch size is not positive.
        """
        if checkpoint.module is None:
            raise CheckpointError(
                f"{checkpoint.source}: a native GGUF has no transformers graph; use LlamaCppEngine"
            )
        if batch_size < 1:
            raise GenerationError(f"batch size {batch_size}: at least 1 is needed")
        self.name = f"transformers-{checkpoint.kernel}"
        self.batch_size = batch_size
        self.notes: tuple[str, ...] = ()
        """What did not go as asked: halved batches, a prefix that could not be shared."""
        self._checkpoint: Checkpoint | None = checkpoint
        self._interventions = tuple(interventions)
        self._share_prefix = share_prefix
        self.stop_ids = stop_ids(checkpoint)

    @property
    def threads(self) -> int | None:
        """PyTorch's, where the graph is on the CPU."""
        module = None if self._checkpoint is None else self._checkpoint.module
        on_cpu = module is not None and module.device.type == "cpu"
        return torch.get_num_threads() if on_cpu else None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        progress: Progress = silent,
    ) -> list[Completion]:
        """Completions of token-id prompts, in the order given; greedy without `sampling`.

        Raises:
            GenerationError: A prompt is empty or too long, or memory ran out for a single one.
            NumericsError: NaN or infinite logits.
        """
        if max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens {max_new_tokens}: at least 1 is needed")
        if sampling is not None and sampling.greedy:
            alone = self.generate(prompts, max_new_tokens=max_new_tokens, progress=progress)
            return repeated(alone, sampling)
        checkpoint, encoded = self._accept(prompts, max_new_tokens)
        module, tokenizer = checkpoint.module, checkpoint.tokenizer
        copies = 1 if sampling is None else sampling.samples

        def decode(batch: PaddedBatch, prefix: Cache | None) -> list[list[Completion]]:
            ids = [encoded.ids[index] for index in batch.indices]
            rows = decode_batch(
                module,
                batch,
                fresh_cache(config_of(checkpoint), prefix, len(batch)),
                stop_ids=self.stop_ids,
                max_new_tokens=max_new_tokens,
                sampler=None if sampling is None else Sampler(sampling, ids),
                lines_at_once=self.batch_size,
                cell=cell_of(checkpoint),
            )
            answers = [
                completion(
                    tokenizer,
                    ids[number // copies],
                    row.ids,
                    row.stop,
                    sample=number % copies,
                    seed=None if sampling is None else sampling.seed,
                )
                for number, row in enumerate(rows)
            ]
            return [answers[first : first + copies] for first in range(0, len(answers), copies)]

        found = self._in_batches(checkpoint, encoded, max_new_tokens, decode, copies, progress)
        return [answer for group in found for answer in group]

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Log-probabilities (nats) of the next token, float32, shape (n_prompts, vocabulary).

        Raises:
            GenerationError: A prompt is empty or too long, or memory ran out for a single one.
            NumericsError: NaN or infinite logits.
        """
        checkpoint, encoded = self._accept(prompts, 0)

        def score(batch: PaddedBatch, prefix: Cache | None) -> list[FloatArray]:
            cache = (
                None if prefix is None else fresh_cache(config_of(checkpoint), prefix, len(batch))
            )
            logits = prompt_logits(checkpoint.module, batch, cache).float()
            check_logits(logits.amax(dim=-1), 0, cell_of(checkpoint))
            return list(torch.log_softmax(logits, dim=-1).cpu().numpy())

        rows = self._in_batches(checkpoint, encoded, 0, score)
        width = int(config_of(checkpoint).get_text_config(decoder=True).vocab_size)
        return np.stack(rows) if rows else np.zeros((0, width), np.float32)

    def close(self) -> None:
        """Let go of the weights, and of the memory of the caches."""
        self._checkpoint = None
        give_back()

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[Checkpoint, EncodedPrompts]:
        """Check the prompts, and give them the form that batching takes."""
        if self._checkpoint is None:
            raise GenerationError(f"this {self.name} engine is closed; open another one")
        ids = tuple(tuple(int(token) for token in row) for row in prompts)
        limit = longest_row(config_of(self._checkpoint))
        for index, row in enumerate(ids):
            if not row:
                raise GenerationError(f"prompt {index} has no tokens")
            if len(row) + new_tokens > limit:
                asked = f" and {new_tokens} new ones" if new_tokens else ""
                raise GenerationError(
                    f"prompt {index} has {len(row)} tokens{asked}; {self._checkpoint.source} takes "
                    f"{limit} in all"
                )
        check_ids(self._checkpoint, ids)
        texts, pieces = ("",) * len(ids), ((),) * len(ids)
        return self._checkpoint, EncodedPrompts(ids, texts, pieces, 1, "raw")

    def _in_batches(
        self,
        checkpoint: Checkpoint,
        prompts: EncodedPrompts,
        new_tokens: int,
        work: Callable[[PaddedBatch, Cache | None], list[T]],
        copies: int = 1,
        progress: Progress = silent,
    ) -> list[T]:
        """What `work` gives for each prompt, in the order of the prompts.

        Each prompt takes the room of `copies` rows, where that many fit.
        """
        module: Any = checkpoint.module
        results: dict[int, T] = {}
        pad = pad_token_id(checkpoint.tokenizer)
        order = length_sorted([len(row) for row in prompts.ids])
        keys = batch_keys(module.config, prompts, new_tokens)
        waiting = deque(groups(order, max(1, self.batch_size // copies), keys))
        with self._running(checkpoint):
            shared = self._shared(checkpoint, prompts, new_tokens)
            prefix = compute_prefix(module, prompts.ids[0][:shared]) if shared else None
            while waiting:
                batch = pad_batch(prompts, waiting[0], pad, module.device, prefix=shared)
                try:
                    with prompt_rows(checkpoint, batch.indices):
                        rows = work(batch, prefix)
                except NumericsError:
                    name_the_layer(checkpoint, prompts.select(batch.indices))
                    raise
                except RuntimeError as error:  # torch's OutOfMemoryError is one
                    if not is_out_of_memory(error):
                        raise
                    rows = None
                if rows is None:  # outside the handler, whose traceback holds the tensors
                    left = [index for group in waiting for index in group]
                    self._halve(checkpoint, min(len(batch) * copies, self.batch_size))
                    waiting = deque(groups(left, max(1, self.batch_size // copies), keys))
                    continue
                results.update(zip(waiting.popleft(), rows, strict=True))
                progress(len(results) * copies, len(prompts) * copies)
        return [results[index] for index in range(len(prompts))]

    @contextmanager
    def _running(self, checkpoint: Checkpoint) -> Iterator[None]:
        with applied(checkpoint, self._interventions), torch.no_grad():
            yield

    def _shared(self, checkpoint: Checkpoint, prompts: EncodedPrompts, new_tokens: int) -> int:
        """Tokens of the common prefix to run once; called with interventions in place."""
        patched = any(isinstance(item, Patch) for item in active(checkpoint))
        if not self._share_prefix or patched or len(prompts) < 2:
            return 0
        # The answer counts too: with it, a row may outgrow a sliding window or a rotary range.
        grown = EncodedPrompts(
            tuple((*row, *[0] * new_tokens) for row in prompts.ids),
            prompts.texts,
            prompts.pieces,
            prompts.post_instruction,
            prompts.template,
        )
        plan = plan_sharing(config_of(checkpoint), grown, 1 + new_tokens)
        if plan.note:
            self._note(plan.note)
        return plan.tokens

    def _halve(self, checkpoint: Checkpoint, rows: int) -> None:
        if rows < 2:
            raise GenerationError(
                f"{checkpoint.source}: out of memory for a single prompt; free memory, shorten the "
                "prompts, or load a smaller dtype"
            )
        self.batch_size = rows // 2
        self._note(f"out of memory: batch of {rows} halved to {self.batch_size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes = (*self.notes, note)
