"""Floor 10: specs, the run directory, steps and the engine that runs them, the matrix."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.experiments.engine_local import LocalEngine
    from mechprobe.experiments.rundir import RunDirectory
    from mechprobe.experiments.running import Finished, run_spec
    from mechprobe.experiments.spec import Spec
    from mechprobe.experiments.spec_file import load_spec, parse_spec

_HOMES = {
    "Finished": "running",
    "LocalEngine": "engine_local",
    "RunDirectory": "rundir",
    "Spec": "spec",
    "load_spec": "spec_file",
    "parse_spec": "spec_file",
    "run_spec": "running",
}

__all__ = [
    "Finished",
    "LocalEngine",
    "RunDirectory",
    "Spec",
    "load_spec",
    "parse_spec",
    "run_spec",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mechprobe.experiments.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mechprobe.experiments' has no attribute {name!r}")
