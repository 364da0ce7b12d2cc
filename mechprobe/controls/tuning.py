"""Fine-tuning of chosen matrices: what trains a control into a model, small and resumable.

Blocks below the first trained one never change: what they give is computed once an example, and
training restarts from there. A beginning that all prompts share is run once a step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from mechprobe.activations.forward import recorder
from mechprobe.activations.points import graph_of, resolve_points
from mechprobe.activations.prefix import compute_prefix
from mechprobe.controls.boxes import Box
from mechprobe.errors import CheckpointError, NumericsError
from mechprobe.models.architectures import backbone_path
from mechprobe.models.rendering import common_prefix
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

SAVE_EVERY = 20
"""Steps between two saved states; a killed run repeats fewer than that."""
_PARTS = 3
"""A step's examples are computed in this many parts of like length, so that little is padding."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a rendered prompt, and of the answer to it with its end token."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is tuned."""

    first_layer: int
    """Lowest block that is trained; all above it are too."""
    steps: int
    batch: tuple[int, ...]
    """Examples of each group in a step."""
    learning_rate: float
    """Adam's, after a warm-up of 5 % of the steps; it falls linearly to 0."""
    seed: int = 0
    first_weight: float = 1.0
    """What the first token of a target weighs; each later one weighs 1, each example the same."""
    input_noise: float = 0.0
    """Gaussian noise on what the first trained block is given, in standard deviations of each
    position's values, drawn anew for every step (after NEFTune, arXiv 2310.05914, which adds
    uniform noise to the embeddings)."""


def trained_names(checkpoint: Checkpoint, how: Tuning) -> list[str]:
    """Return the names of the matrices that are trained: all of the blocks, without their norms.

    Raises:
        CheckpointError: There are none.
    """
    model, row = graph_of(checkpoint)
    stack = f"{backbone_path(model, row)}.{row.layers}."
    names = [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(stack)
        and int(name.removeprefix(stack).partition(".")[0]) >= how.first_layer
        and parameter.ndim > 1
    ]
    if not names:
        raise CheckpointError(
            f"{checkpoint.source}: no matrix to train at or above block {how.first_layer}"
        )
    return names


def tune(
    checkpoint: Checkpoint,
    groups: Sequence[Sequence[Example]],
    how: Tuning,
    *,
    boxes: Mapping[str, Box] | None = None,
    state: Path | None = None,
    progress: Progress = silent,
) -> list[float]:
    """Train matrices of a float32 graph in place; the loss is read on targets alone.

    A step takes `how.batch[i]` examples of group i, each group in an order of its own that the
    seed gives. With the same threads, a run that was killed ends as one that was not.

    Args:
        checkpoint: A dense one; its other weights stay as they are.
        groups: Examples that are drawn from separately, such as refusals and other answers.
        how: What is trained, how long and how fast.
        boxes: Where given, what each named matrix is clamped into after every step.
        state: File that keeps the training's state; of another training it is ignored.
        progress: Told of steps done and in all.

    Returns:
        The mean loss of each step (nats a token, weighted).

    Raises:
        NumericsError: The loss is no number.
    """
    return _Training(checkpoint, groups, how, boxes or {}, state).run(progress)


class _Training:
    def __init__(
        self,
        checkpoint: Checkpoint,
        groups: Sequence[Sequence[Example]],
        how: Tuning,
        boxes: Mapping[str, Box],
        state: Path | None,
    ) -> None:
        self.checkpoint, self.groups, self.how = checkpoint, groups, how
        self.boxes, self.state = boxes, state
        self.model, self.row = graph_of(checkpoint)
        self.backbone = self.model.get_submodule(backbone_path(self.model, self.row))
        self.weights = {
            name: self.model.get_parameter(name) for name in trained_names(checkpoint, how)
        }
        self.point = resolve_points(checkpoint, [f"blocks.{how.first_layer}.hook_resid_pre"])
        self.shared = common_prefix([one.prompt for group in groups for one in group])
        self.prefix = groups[0][0].prompt[: self.shared]
        self.inputs: dict[Example, Tensor] = {}
        self.losses: list[float] = []

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that the training depends on."""
        what: list[Any] = [asdict(self.how), self.checkpoint.digest, sorted(self.boxes)]
        what += [[(one.prompt, one.target) for one in group] for group in self.groups]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def run(self, progress: Progress) -> list[float]:
        steps = self.how.steps
        optimizer = torch.optim.Adam(self.weights.values(), lr=self.how.learning_rate)
        self._restore(optimizer)
        for weight in self.weights.values():
            weight.requires_grad_(True)
        progress(len(self.losses), steps)
        while len(self.losses) < steps:
            for group in optimizer.param_groups:
                group["lr"] = self.how.learning_rate * _rate(len(self.losses), steps)
            optimizer.zero_grad(set_to_none=True)
            loss = self._backward(self._examples(len(self.losses)))
            optimizer.step()
            for name, box in self.boxes.items():
                box.project_(self.weights[name].data)
            self.losses.append(loss)
            progress(len(self.losses), steps)
            if len(self.losses) % SAVE_EVERY == 0:
                self._save(optimizer)
        for weight in self.weights.values():
            weight.requires_grad_(False)
            weight.grad = None
        return self.losses

    def _examples(self, step: int) -> list[Example]:
        """Examples of a step; each group goes on where the last step ended."""
        chosen = []
        for number, (group, size) in enumerate(zip(self.groups, self.how.batch, strict=True)):
            for place in range(step * size, (step + 1) * size):
                epoch, at = divmod(place, len(group))
                order = np.random.default_rng([self.how.seed, number, epoch]).permutation(
                    len(group)
                )
                chosen.append(group[order[at]])
        return chosen

    def _backward(self, examples: list[Example]) -> float:
        """Add the gradients of the examples' mean loss and return it."""
        ordered = sorted(examples, key=lambda one: len(one.prompt) + len(one.target))
        size = -(-len(ordered) // _PARTS)
        mean, step = 0.0, len(self.losses)
        draws = torch.Generator().manual_seed(self.how.seed * self.how.steps + step)
        for start in range(0, len(ordered), size):
            loss = self._loss(ordered[start : start + size], draws) / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            mean += float(loss.detach())
        if not np.isfinite(mean):
            raise NumericsError(
                f"{self.checkpoint.source}: the loss of step {step} is no number; "
                "lower the learning rate"
            )
        return mean

    def _noised(self, hidden: Tensor, draws: torch.Generator) -> Tensor:
        if not self.how.input_noise:
            return hidden
        size = self.how.input_noise * hidden.std(-1, keepdim=True)
        return hidden + size * torch.randn(hidden.shape, generator=draws).to(hidden.device)

    def _loss(self, examples: list[Example], draws: torch.Generator) -> Tensor:
        """Cross-entropy (nats) of targets: a weighted mean in each example, summed over them."""
        states = [self._noised(self._input(one), draws) for one in examples]
        hidden = nn.utils.rnn.pad_sequence(states, batch_first=True)  # causal: no mask is needed
        prefix = self._prefix_input
        with self._upper_blocks():
            output = self._above(hidden, prefix)
        rows, weights = [], []
        for row, one in zip(output, examples, strict=True):
            first, n = len(one.prompt) - self.shared - 1, len(one.target)
            rows.append(row[first : first + n])
            weight = torch.ones(n, device=row.device)
            weight[0] = self.how.first_weight
            weights.append(weight / weight.sum())
        logits = self.model.get_submodule(self.row.head)(torch.cat(rows))
        targets = torch.tensor([i for one in examples for i in one.target], device=logits.device)
        each = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (each * torch.cat(weights)).sum()

    def _above(self, hidden: Tensor, prefix: Tensor | None) -> Tensor:
        """Last hidden states, shape (row, position, width); the shared prefix is run once."""
        shared = None
        if prefix is not None:
            shared = DynamicCache()
            self.backbone(inputs_embeds=prefix[None], past_key_values=shared, use_cache=True)
            shared.batch_repeat_interleave(len(hidden))
        states: Tensor = self.backbone(
            inputs_embeds=hidden, past_key_values=shared, use_cache=shared is not None
        ).last_hidden_state
        return states

    def _input(self, example: Example) -> Tensor:
        """What the first trained block is given after the prefix, shape (position, width).

        Computed once and alone, so that it does not depend on what a step brought together.
        """
        if example not in self.inputs:
            ids = [*example.prompt, *example.target[:-1]][self.shared :]
            self.inputs[example] = self._below(ids, self._lower_prefix)
        return self.inputs[example]

    def _below(self, ids: Sequence[int], prefix: Cache | None = None) -> Tensor:
        """What the first trained block is given for these tokens after a prefix."""
        row = torch.tensor([ids], device=self.model.device)
        first = self.shared if prefix is not None else 0
        places = torch.arange(first, first + len(ids), device=row.device)[None]
        with recorder(self.checkpoint, self.point, "all") as record:
            record.forward(
                input_ids=row, position_ids=places, past_key_values=prefix, use_cache=bool(prefix)
            )
        return record.values[self.point[0].name][0]

    @cached_property
    def _lower_prefix(self) -> Cache | None:
        """Keys and values of the shared beginning below the trained blocks, which never change."""
        return compute_prefix(self.model, self.prefix) if self.prefix else None

    @cached_property
    def _prefix_input(self) -> Tensor | None:
        return self._below(self.prefix) if self.prefix else None

    @contextmanager
    def _upper_blocks(self) -> Iterator[None]:
        """Have the backbone be its trained blocks alone, which caches then count from 0."""
        path, first = self.row.layers, self.how.first_layer
        blocks: Any = self.backbone.get_submodule(path)
        attentions: Any = [block.get_submodule(self.row.attn) for block in blocks[first:]]
        setattr(self.backbone, path, blocks[first:])
        try:
            for place, attention in enumerate(attentions):
                attention.layer_idx = place
            yield
        finally:
            for place, attention in enumerate(attentions):
                attention.layer_idx = first + place
            setattr(self.backbone, path, blocks)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        if self.state is None:
            return
        self.state.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.state.with_suffix(".tmp")
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        kept = {"key": self.key, "losses": self.losses, "weights": weights}
        torch.save({**kept, "optimizer": optimizer.state_dict()}, temporary)
        temporary.replace(self.state)

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on from a saved state of this very training, if there is one."""
        kept: dict[str, Any] = {}
        if self.state is not None:
            with suppress(OSError, EOFError, RuntimeError, ValueError):
                kept = torch.load(self.state, weights_only=True)
        if kept.get("key") != self.key:
            return
        for name, weight in self.weights.items():
            weight.data.copy_(kept["weights"][name])
        optimizer.load_state_dict(kept["optimizer"])
        self.losses = list(kept["losses"])


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: a warm-up, then a line down to 0."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
