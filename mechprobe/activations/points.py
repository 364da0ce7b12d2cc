"""Hook points: TransformerLens names for places in a transformers graph.

The residual stream, for a block `i`: `hook_resid_pre` is the block's input, `hook_resid_mid` the
stream between attention and MLP, `hook_resid_post` the block's output. `hook_attn_out` and
`hook_mlp_out` are what is *added to the stream*: after post-norms (Gemma, OLMo 2) and residual
multipliers (Granite). `attn.hook_z` is the input of the attention's output projection, heads
concatenated, shape (…, heads * head width); `mlp.hook_post` the input of the down projection.
Gemma 4 adds a third term, its per-layer embedding: `hook_per_layer_out`, a name of our own.

`hook_embed` is the token embedding as in TransformerLens: with the scale that Gemma and Granite
give it, without GPT-2's positions. What enters the first block is `blocks.0.hook_resid_pre`.

Any other place is a raw module path of the graph with `:in` or `:out`, for example
`model.layers.3.self_attn.q_proj:out`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mechprobe.errors import CheckpointError, HookNameError
from mechprobe.models.architectures import backbone_path, text_config

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from mechprobe.models.architectures import Architecture
    from mechprobe.models.checkpoint import Checkpoint

Side = Literal["in", "out"]

BLOCK_POINTS = (
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_per_layer_out",
    "hook_resid_post",
)
"""Names within a block, in order of computation."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A place in the graph whose tensor, shape (batch, position, width), can be read or edited."""

    name: str
    layer: int | None
    """The block; None for a place outside the blocks, or a raw path."""
    module: str
    """Path of the module in the graph."""
    side: Side
    width: int | None
    """Size of the last dimension; None where only running the model would tell."""
    scale: float = 1.0
    """What the module's tensor is multiplied by on its way into the stream (Granite)."""

    @property
    def kind(self) -> str:
        """The name without its block, such as `hook_resid_pre` or `attn.hook_z`."""
        return re.sub(r"^blocks\.\d+\.", "", self.name)


def graph_of(checkpoint: Checkpoint) -> tuple[PreTrainedModel, Architecture]:
    """The graph and its row of the table.

    Raises:
        CheckpointError: llama.cpp runs this checkpoint, so there is no graph.
    """
    if checkpoint.module is None or checkpoint.architecture is None:
        raise CheckpointError(
            f"{checkpoint.source}: a native GGUF has no graph to hook; load it with kernel='dense'"
        )
    return checkpoint.module, checkpoint.architecture


def hook_names(checkpoint: Checkpoint) -> list[str]:
    """Every named hook point that this checkpoint has, in order of computation."""
    return [point.name for point in _named_points(checkpoint)]


def resolve_points(checkpoint: Checkpoint, patterns: str | Sequence[str]) -> tuple[HookPoint, ...]:
    """Turn names, globs and raw module paths into hook points.

    Args:
        checkpoint: One with a graph.
        patterns: Names such as `blocks.3.hook_resid_post`, globs over them such as
            `blocks.*.hook_resid_*`, or raw module paths with `:in` / `:out` (globs too).

    Returns:
        Each point once: named ones in order of computation, then raw ones as asked.

    Raises:
        HookNameError: A pattern matches nothing; the message says why, with near matches.
    """
    wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not wanted:
        raise HookNameError("no hook names were given; hook_names() lists what there is")
    model, _ = graph_of(checkpoint)
    named = _named_points(checkpoint)
    chosen: set[str] = set()
    raw: dict[str, HookPoint] = {}
    for pattern in wanted:
        if ":" in pattern:
            raw |= {point.name: point for point in _raw_points(model, pattern)}
            continue
        hits = [point.name for point in named if fnmatch.fnmatchcase(point.name, pattern)]
        if not hits:
            raise HookNameError(_explain(checkpoint, pattern, [point.name for point in named]))
        chosen.update(hits)
    return (*(point for point in named if point.name in chosen), *raw.values())


def resolve_point(checkpoint: Checkpoint, name: str) -> HookPoint:
    """The one hook point of that name.

    Raises:
        HookNameError: The name is unknown, or is a glob that matches several.
    """
    points = resolve_points(checkpoint, name)
    if len(points) != 1:
        raise HookNameError(f"{name!r} matches {len(points)} hook points where one is needed")
    return points[0]


def n_layers(checkpoint: Checkpoint) -> int:
    """Number of blocks in the graph."""
    model, row = graph_of(checkpoint)
    return len(list(model.get_submodule(f"{backbone_path(model, row)}.{row.layers}").children()))


def _named_points(checkpoint: Checkpoint) -> list[HookPoint]:
    model, row = graph_of(checkpoint)
    base = backbone_path(model, row)
    width = int(text_config(model.config).hidden_size)
    embed = f"{base}.{row.embed}"
    points = [HookPoint("hook_embed", None, embed, "out", width, row.embedding_multiplier)]
    for layer in range(n_layers(checkpoint)):
        points += _block_points(model, row, base, layer, width)
    points.append(HookPoint("ln_final.hook_out", None, f"{base}.{row.final_norm}", "out", width))
    return points


def _block_points(
    model: nn.Module, row: Architecture, base: str, layer: int, width: int
) -> Iterator[HookPoint]:
    block = f"{base}.{row.layers}.{layer}"
    z = f"{block}.{row.attn}.{row.attn_output}"
    neurons = f"{block}.{row.mlp}.{row.down_projection}"
    m = row.residual_multiplier
    places: dict[str, tuple[str, Side, int | None, float]] = {
        "hook_resid_pre": (block, "in", width, 1.0),
        "attn.hook_z": (z, "in", _inputs_of(model, z), 1.0),
        "hook_attn_out": (f"{block}.{row.attn_added}", "out", width, m),
        "hook_mlp_out": (f"{block}.{row.mlp_added}", "out", width, m),
        "hook_resid_post": (block, "out", width, 1.0),
    }
    if not row.parallel:
        places["hook_resid_mid"] = (f"{block}.{row.mid}", "in", width, 1.0)
    if _module_at(model, neurons) is not None:
        places["mlp.hook_post"] = (neurons, "in", _inputs_of(model, neurons), 1.0)
    if row.extra_added is not None:
        places["hook_per_layer_out"] = (f"{block}.{row.extra_added}", "out", width, 1.0)
    for kind in BLOCK_POINTS:
        if kind in places:
            path, side, size, scale = places[kind]
            yield HookPoint(f"blocks.{layer}.{kind}", layer, path, side, size, scale)


def _raw_points(model: nn.Module, pattern: str) -> list[HookPoint]:
    path, _, side = pattern.rpartition(":")
    if side not in ("in", "out"):
        raise HookNameError(f"{pattern!r}: a raw module path ends in ':in' or ':out'")
    paths = [name for name, _ in model.named_modules() if name]
    hits = [name for name in paths if fnmatch.fnmatchcase(name, path)]
    if not hits:
        raise HookNameError(f"{pattern!r}: no module of that path{_near(path, paths)}")
    return [
        HookPoint(
            name=f"{hit}:{side}",
            layer=None,
            module=hit,
            side="in" if side == "in" else "out",
            width=_inputs_of(model, hit) if side == "in" else None,
        )
        for hit in hits
    ]


def _explain(checkpoint: Checkpoint, pattern: str, names: Sequence[str]) -> str:
    """Why a pattern matched nothing: a missing layer, a missing kind, or a slip of the pen."""
    _, row = graph_of(checkpoint)
    count = n_layers(checkpoint)
    parts = re.match(r"^blocks\.([^.]+)\.(.+)$", pattern)
    if parts:
        layer, kind = parts.groups()
        kinds = fnmatch.filter(BLOCK_POINTS, kind)
        if kinds and layer.lstrip("-").isdigit() and not 0 <= int(layer) < count:
            return f"{pattern!r}: no block {layer}; this model has blocks 0 to {count - 1}"
        if kinds:
            return f"{pattern!r}: {row.name} lacks {kinds[0]}: {_why_lacking(row, kinds[0])}"
    return f"{pattern!r} matches no hook point{_near(pattern, names)}"


def _why_lacking(row: Architecture, kind: str) -> str:
    for lacking, reason in row.lacks:
        if lacking == kind:
            return reason
    if kind == "hook_resid_mid":
        return (
            "in a parallel block attention and MLP read the same stream, nothing lies between "
            "them; use hook_resid_pre, hook_attn_out, hook_mlp_out or hook_resid_post"
        )
    if kind == "hook_per_layer_out":
        return "only Gemma 4 models with per-layer embeddings add such a term"
    return "these blocks have no such module"


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; near: {', '.join(close)}" if close else "; hook_names() lists what there is"


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _inputs_of(model: nn.Module, path: str) -> int | None:
    """Input features of a linear map: `nn.Linear` and quantized ones, or GPT-2's `Conv1D`."""
    module = _module_at(model, path)
    size = getattr(module, "in_features", getattr(module, "nx", None))
    return size if isinstance(size, int) else None
