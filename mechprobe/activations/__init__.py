"""Floor 3: weights become activations. Hook points, interventions, the capture pass, the store."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.activations.adapters import to_nnsight, to_transformer_lens
    from mechprobe.activations.caching import ActivationCache, next_token_logits, run_with_cache
    from mechprobe.activations.capturing import capture
    from mechprobe.activations.check import check_architecture
    from mechprobe.activations.forward import recorder
    from mechprobe.activations.interventions import (
        Ablate,
        Add,
        Intervention,
        Patch,
        applied,
        prompt_rows,
    )
    from mechprobe.activations.points import HookPoint, hook_names, resolve_points
    from mechprobe.activations.store import ActivationStore

_HOMES = {
    "Ablate": "interventions",
    "ActivationCache": "caching",
    "ActivationStore": "store",
    "Add": "interventions",
    "HookPoint": "points",
    "Intervention": "interventions",
    "Patch": "interventions",
    "applied": "interventions",
    "capture": "capturing",
    "check_architecture": "check",
    "hook_names": "points",
    "next_token_logits": "caching",
    "prompt_rows": "interventions",
    "recorder": "forward",
    "resolve_points": "points",
    "run_with_cache": "caching",
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
    "prompt_rows",
    "recorder",
    "resolve_points",
    "run_with_cache",
    "to_nnsight",
    "to_transformer_lens",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"mechprobe.activations.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mechprobe.activations' has no attribute {name!r}")
