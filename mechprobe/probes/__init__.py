"""Floor 7: activations become numbers. A probe is given a checkpoint, never a name to load."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.probes import (
        battery,
        calibration,
        entropy,
        refusal_direction,
        safety_neurons,
    )

__all__ = ["battery", "calibration", "entropy", "refusal_direction", "safety_neurons"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return import_module(f"mechprobe.probes.{name}")
    raise AttributeError(f"module 'mechprobe.probes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
