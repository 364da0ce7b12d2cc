"""`mechprobe doctor`: what this machine has, what is missing, and the line that mends it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any

from mechprobe.cli.options import Json
from mechprobe.cli.terminal import quiet


def doctor(json: Json = False) -> None:
    """Versions, extras, cores, memory, GPU, quantizers, caches."""
    with quiet() as screen:
        found = examine()
        if json:
            screen.document(found)
            return
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in found.items():
            table.add_row(name.replace("_", " "), _text(value))
        screen.out.print(table)


def examine() -> dict[str, Any]:
    """The facts, as plain values."""
    import psutil

    import mechprobe
    from mechprobe.cache import cache_folder

    memory = psutil.virtual_memory()
    return {
        "mechprobe": mechprobe.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "cuda": _cuda(),
        "packages": _versions(None),
        "extras": {name: _extra(name) for name in ("quant", "judges", "interp", "autoawq")},
        "llama_quantize": shutil.which("llama-quantize") or "not on PATH (cyllama is used instead)",
        "cache": str(cache_folder()),
        "disk_free_gib": round(_disk_free(), 1),
        "hub": "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "online",
    }


def _disk_free() -> float:
    from mechprobe.cache import cache_folder

    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30


def _cuda() -> str:
    if find_spec("torch") is None:
        return "torch is not installed; run: pip install mechprobe"
    import torch

    if not torch.cuda.is_available():
        return "none"
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(i) for i in range(count))


def _required(extra: str | None) -> list[str]:
    """Names of the distributions that mechprobe, or one of its extras, needs."""
    from packaging.requirements import Requirement

    try:
        lines = requires("mechprobe") or []
    except PackageNotFoundError:
        return []
    names = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        wanted = marker is not None and "extra" in str(marker)
        if wanted == (extra is not None) and (
            marker is None or marker.evaluate({"extra": extra or ""})
        ):
            names.append(requirement.name)
    return names


def _versions(extra: str | None) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _required(extra):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _extra(name: str) -> str:
    found = _versions(name)
    if not found or None in found.values():
        missing = ", ".join(n for n, v in found.items() if v is None) or name
        return f"missing {missing}; run: pip install 'mechprobe[{name}]'"
    return ", ".join(f"{n} {v}" for n, v in found.items())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {said or 'missing'}" for name, said in value.items())
    return str(value)
