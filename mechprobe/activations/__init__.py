"""Floor 3: weights become activations. Hook points, interventions, the capture pass, the store."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.activations.adapters import to_nnsight, to_transformer_lens
    from mechprobe.activations.capture import capture
    from mechprobe.activations.check import check_architecture
    from mechprobe.activations.forward import (
        ActivationCache,
        next_token_logits,
        recorder,
        run_with_cache,
    )
    from mechprobe.activations.interventions import Ablate, Add, Intervention, Patch, applied
    from mechprobe.activations.points import HookPoint, hook_names, resolve_points
    from mechprobe.activations.store import ActivationStore

_HOMES = {
    "Ablate": "interventions",
    "ActivationCache": "forward",
    "ActivationStore": "store",
    "Add": "interventions",
    "HookPoint": "points",
    "Intervention": "interventions",
    "Patch": "interventions",
    "applied": "interventions",
    "capture": "capture",
    "check_architecture": "check",
    "hook_names": "points",
    "next_token_logits": "forward",
    "recorder": "forward",
    "resolve_points": "points",
    "run_with_cache": "forward",
    "to_nnsight": "adapters",
    "to_transformer_lens": "adapters",
}

__all__ = [
    "Ablate",
    "ActivationCache",
    "ActivationStore",
    "Add",
    "HookPoint",
    "Intervention",
    "Patch",
    "applied",
    "capture",
    "check_architecture",
    "hook_names",
    "next_token_logits",
    "recorder",
    "resolve_points",
    "run_with_cache",
    "to_nnsight",
    "to_transformer_lens",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"mechprobe.activations.{_HOMES[name]}"), name)
        globals()[name] = value  # over the submodule of the same name, where there is one
        return value
    raise AttributeError(f"module 'mechprobe.activations' has no attribute {name!r}")
