"""The self-check at load: does the architecture table find the tensors it says it finds?

A path that is off by one norm still gives plausible activations. Arithmetic tells: what is read
as added to the stream must be what the stream gains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mechprobe.activations.forward import recorder
from mechprobe.activations.points import graph_of, n_layers, resolve_points
from mechprobe.errors import ArchitectureError
from mechprobe.models.architectures import backbone_path, text_config

if TYPE_CHECKING:
    from mechprobe.models.architectures import Architecture
    from mechprobe.models.checkpoint import Checkpoint

_ROUNDINGS = 8
"""Rounding errors allowed per element: a sum of four terms and one product, with room."""


def check_architecture(checkpoint: Checkpoint) -> None:
    """Run four random tokens and hold the table's row to its arithmetic, at every block.

    Checked, with what Gemma 4 adds (`hook_per_layer_out`, and the block's scalar `s`, else 1):

    - `resid_pre + attn_out = resid_mid` (not in parallel blocks),
    - `(resid_mid + mlp_out + per_layer_out) * s = resid_post`,
      with `resid_pre + attn_out` for `resid_mid` in parallel blocks,
    - `resid_post` of a block is `resid_pre` of the next, bit for bit.

    Raises:
        ArchitectureError: Something does not add up; the message names block and equation.
        NumericsError: The weights give NaN or infinity.
    """
    model, row = graph_of(checkpoint)
    points = resolve_points(checkpoint, ["blocks.*.hook_resid_*", "blocks.*.hook_*_out"])
    draw = torch.Generator().manual_seed(0)
    vocabulary = int(text_config(model.config).vocab_size)
    ids = torch.randint(0, vocabulary, (1, 4), generator=draw)
    with recorder(checkpoint, points, "all") as record:
        record.forward(input_ids=ids.to(model.get_input_embeddings().weight.device))
        record.check_finite()
    for layer in range(n_layers(checkpoint)):
        here = {p.kind: record.values[p.name] for p in points if p.layer == layer}
        block = model.get_submodule(f"{backbone_path(model, row)}.{row.layers}.{layer}")
        _check_block(checkpoint.source, row, block, layer, here)
        following = record.values.get(f"blocks.{layer + 1}.hook_resid_pre")
        post = here["hook_resid_post"]
        if following is not None and not torch.equal(post, following.to(post.device)):
            raise ArchitectureError(
                f"{checkpoint.source}: the output of block {layer} is not the input of block "
                f"{layer + 1}; the table's row {row.name!r} does not fit this graph"
            )


def _check_block(
    source: str, row: Architecture, block: nn.Module, layer: int, here: dict[str, Tensor]
) -> None:
    before_mlp = [here["hook_resid_pre"], here["hook_attn_out"]]
    if not row.parallel:
        _check_sum(
            source,
            row,
            layer,
            "resid_pre + attn_out = resid_mid",
            before_mlp,
            here["hook_resid_mid"],
        )
        before_mlp = [here["hook_resid_mid"]]
    terms = [*before_mlp, here["hook_mlp_out"]]
    if "hook_per_layer_out" in here:
        terms.append(here["hook_per_layer_out"])
    if row.layer_scalar is not None:
        scalar = getattr(block, row.layer_scalar)
        terms = [term * scalar for term in terms]
    equation = f"{'resid_pre + attn_out' if row.parallel else 'resid_mid'} + mlp_out = resid_post"
    _check_sum(source, row, layer, equation, terms, here["hook_resid_post"])


def _check_sum(
    source: str, row: Architecture, layer: int, equation: str, terms: list[Tensor], total: Tensor
) -> None:
    """Compare element by element, so that one huge channel does not hide the others."""
    bound = torch.finfo(total.dtype).eps * _ROUNDINGS
    added = torch.stack([term.cpu().double() for term in terms])
    found = total.cpu().double()
    size = (added.abs().sum(dim=0) + found.abs()).clamp(min=torch.finfo(total.dtype).tiny)
    error = (added.sum(dim=0) - found).abs() / size
    if bool((error > bound).any()):
        worst = float(error.max())
        raise ArchitectureError(
            f"{source}: {equation} does not hold in block {layer} (relative error {worst:.1e}); "
            f"the architecture table's row {row.name!r} does not fit this graph, so its hook "
            "points cannot be trusted"
        )
