"""mechprobe: did quantization break this model's refusals, and where inside did it break?

Importing this package is cheap: torch and transformers load when a name that needs them is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mechprobe.openmp import yield_cores

if TYPE_CHECKING:
    from mechprobe import probes
    from mechprobe.activations import Ablate, ActivationStore, Add, Patch
    from mechprobe.experiments.opened import open_run
    from mechprobe.experiments.quantization import quantize
    from mechprobe.models.export import export
    from mechprobe.session import Model, capture, load

__version__ = "0.1.0.dev0"

yield_cores(os.environ)  # before torch is loaded

_HOMES = {
    "Ablate": "mechprobe.activations",
    "ActivationStore": "mechprobe.activations",
    "Add": "mechprobe.activations",
    "Model": "mechprobe.session",
    "Patch": "mechprobe.activations",
    "capture": "mechprobe.session",
    "export": "mechprobe.models.export",
    "load": "mechprobe.session",
    "open_run": "mechprobe.experiments.opened",
    "quantize": "mechprobe.experiments.quantization",
}

__all__ = [
    "Ablate",
    "ActivationStore",
    "Add",
    "Model",
    "Patch",
    "capture",
    "export",
    "load",
    "open_run",
    "probes",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "probes":
        return import_module("mechprobe.probes")
    raise AttributeError(f"module 'mechprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
