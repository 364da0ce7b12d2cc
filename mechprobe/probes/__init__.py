"""Floor 7: activations become numbers. A probe is given a checkpoint, never a name to load."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.probes import refusal_direction

__all__ = ["refusal_direction"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return import_module(f"mechprobe.probes.{name}")
    raise AttributeError(f"module 'mechprobe.probes' has no attribute {name!r}")
