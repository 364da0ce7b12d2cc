"""Floor 9: an analysis becomes figures and one page that a person can read and keep."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.report.page import make_report
    from mechprobe.report.section import Material
    from mechprobe.report.templating import Report

_HOMES = {"Material": "section", "Report": "templating", "make_report": "page"}

__all__ = ["Material", "Report", "make_report"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mechprobe.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mechprobe.report' has no attribute {name!r}")
