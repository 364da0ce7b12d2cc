"""The same weights, quantized ones too, in the hands of TransformerLens or nnsight."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from mechprobe.activations.points import graph_of
from mechprobe.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mechprobe.models.checkpoint import Checkpoint


def to_transformer_lens(checkpoint: Checkpoint) -> Any:
    """A TransformerLens `TransformerBridge` over this checkpoint's graph.

    The tensors are shared, so this costs no memory and a change of a weight shows on both sides.
    The modules are not: a bridge replaces those it is given and switches them to eager attention,
    so it gets a copy of the module tree. Interventions applied here do not act there. Names agree
    with ours; its `hook_z` has shape (…, head, head width) where ours is flat.

    Raises:
        MissingExtraError: transformer-lens is not installed.
    """
    bridge = require("transformer_lens.model_bridge", "interp")
    model, _ = graph_of(checkpoint)
    twin = share_weights(model)
    if not twin.config.architectures:
        twin.config.architectures = [type(model).__name__]
    # The bridge alters the tokenizer it is given, and loads it again from disk unless it is told
    # that BOS is seen to; there may be no disk to load it from.
    tokenizer = copy.deepcopy(checkpoint.tokenizer)
    tokenizer.init_kwargs |= {"name_or_path": str(checkpoint.path), "add_bos_token": True}
    return bridge.TransformerBridge.boot_transformers(
        str(checkpoint.path), hf_model=twin, tokenizer=tokenizer
    )


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree and config over the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def to_nnsight(checkpoint: Checkpoint) -> Any:
    """An nnsight `TransformersModel` over this checkpoint's own graph.

    Its envoys have our module paths: a point with side `out` is `.output`, with side `in` `.input`.
    Interventions applied here act there too.

    Raises:
        MissingExtraError: nnsight is not installed.
    """
    nnsight = require("nnsight", "interp")
    model, _ = graph_of(checkpoint)
    return nnsight.TransformersModel(model, tokenizer=checkpoint.tokenizer, task="text-generation")
