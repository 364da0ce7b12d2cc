"""Fine-tuning of chosen matrices: what trains a control into a model, small and resumable.

Blocks below the first trained one never change: what they give is computed once an example, and
training restarts from there. A beginning that all prompts share is run once a step, and all
examples of a step are one row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mechprobe.activations.forward import recorder
from mechprobe.activations.points import graph_of, resolve_points
from mechprobe.controls.boxes import Box
from mechprobe.errors import CheckpointError, NumericsError
from mechprobe.models.architectures import backbone_path
from mechprobe.models.rendering import common_prefix
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint

SAVE_EVERY = 20
"""Steps between two saved states; a killed run repeats fewer than that."""
_AT_ONCE = 16
"""Examples of one forward pass without gradients."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a rendered prompt, and of the answer to it with its end token."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    kept: bool = False
    """Whether the untrained model's distribution at every position of the target is to be kept
    (Kullback-Leibler divergence from it), rather than these very tokens said (cross-entropy)."""


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
    half: bool = False
    """Whether trained blocks multiply in bfloat16 where the processor has instructions for it; what
    is added up, the weights and their head stay float32."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions that multiply matrices in bfloat16."""
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


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
        progress: Told of examples prepared and in all, then of steps.

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
        self.outputs: dict[Example, Tensor] = {}
        self.prefix_input: Tensor | None = None
        self.losses: list[float] = []

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that the training depends on."""
        what: list[Any] = [asdict(self.how), self.checkpoint.digest, sorted(self.boxes)]
        what += [[astuple(one) for one in group] for group in self.groups]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def run(self, progress: Progress) -> list[float]:
        steps = self.how.steps
        optimizer = torch.optim.Adam(self.weights.values(), self.how.learning_rate, fused=True)
        self._prepare(progress)
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
        step = len(self.losses)
        draws = torch.Generator().manual_seed(self.how.seed * self.how.steps + step)
        loss = self._loss(examples, draws)
        loss.backward()  # type: ignore[no-untyped-call]
        mean = float(loss.detach())
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
        """Loss (nats) of targets: a weighted mean in each example, the mean over them."""
        states = self._above([self._noised(self.inputs[one], draws) for one in examples])
        rows, weights = [], []
        for own, one in zip(states, examples, strict=True):
            rows.append(own[-len(one.target) :])
            weight = torch.ones(len(one.target), device=own.device)
            weight[0] = self.how.first_weight
            weights.append(weight / weight.sum() / len(examples))
        found = self._log_probabilities(torch.cat(rows))
        targets = torch.tensor([i for one in examples for i in one.target], device=found.device)
        each = -found.gather(-1, targets[:, None])[:, 0]
        kept = [one for one in examples if one.kept]
        if kept:
            which = torch.tensor([one.kept for one in examples for _ in one.target])
            before = self._log_probabilities(torch.cat([self.outputs[one] for one in kept]))
            apart = (before.exp() * (before - found[which])).sum(-1)
            each = each.masked_scatter(which.to(each.device), apart)
        return (each * torch.cat(weights)).sum()

    def _log_probabilities(self, states: Tensor) -> Tensor:
        """Of the next token after each last hidden state, in nats."""
        logits: Tensor = self.model.get_submodule(self.row.head)(states)
        return logits.log_softmax(-1)

    def _prepare(self, progress: Progress) -> None:
        """Compute what the first trained block is given, and what is to be kept, once an example.

        In an order of its own, so that nothing depends on what a step brings together.
        """
        examples = list(dict.fromkeys(one for group in self.groups for one in group))
        for start in range(0, len(examples), _AT_ONCE):
            progress(start, len(examples))
            some = examples[start : start + _AT_ONCE]
            given = self._below(some)
            for one, own in zip(some, given, strict=True):
                self.inputs[one] = own.clone()
            kept = [one for one in some if one.kept]
            if kept:
                with torch.no_grad():
                    states = self._above([self.inputs[one] for one in kept])
                for one, own in zip(kept, states, strict=True):
                    self.outputs[one] = own[-len(one.target) :].clone()

    def _below(self, examples: list[Example]) -> Sequence[Tensor]:
        """What the first trained block is given for each example after the prefix."""
        tokens = [[*one.prompt, *one.target[:-1]][self.shared :] for one in examples]
        sizes = [len(ids) for ids in tokens]
        row = torch.tensor([[*self.prefix, *(i for ids in tokens for i in ids)]])
        with recorder(self.checkpoint, self.point, "all") as record:
            record.forward(
                input_ids=row.to(self.model.device), use_cache=False, **self._side_by_side(sizes)
            )
        values = record.values[self.point[0].name][0]
        if self.prefix_input is None:
            self.prefix_input = values[: self.shared].clone()
        return torch.split(values[self.shared :], sizes)

    def _above(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Return the last hidden states of each example after the prefix, from its input."""
        assert self.prefix_input is not None, "prepared"
        sizes = [len(part) for part in inputs]
        half = self.how.half and multiplies_bfloat16(self.model.device)
        arithmetic = torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)
        with self._upper_blocks(), arithmetic:
            states: Tensor = self.backbone(
                inputs_embeds=torch.cat([self.prefix_input, *inputs])[None],
                use_cache=False,
                **self._side_by_side(sizes),
            ).last_hidden_state
        return torch.split(states[0, self.shared :].float(), sizes)

    def _side_by_side(self, sizes: list[int]) -> dict[str, Tensor]:
        """Mask and positions of one row that holds the prefix once, and each example after it.

        A position sees the prefix and its own example: no padding, and each matrix is used once.
        """
        lengths = torch.tensor([self.shared, *sizes])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        seen = ((owner == owner[:, None]) | (owner == 0)).tril()
        mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
        places = [torch.arange(self.shared)]
        places += [torch.arange(self.shared, self.shared + size) for size in sizes]
        device = self.model.device
        return {
            "attention_mask": mask[None, None].to(device),
            "position_ids": torch.cat(places)[None].to(device),
        }

    @contextmanager
    def _upper_blocks(self) -> Iterator[None]:
        """Have the backbone be its trained blocks alone, with attention written out.

        In bfloat16 on a CPU that is faster than PyTorch's fused one.
        """
        path, attention = self.row.layers, self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        blocks: Any = self.backbone.get_submodule(path)
        setattr(self.backbone, path, blocks[self.how.first_layer :])
        try:
            yield
        finally:
            setattr(self.backbone, path, blocks)
            self.model.set_attn_implementation(attention)

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
