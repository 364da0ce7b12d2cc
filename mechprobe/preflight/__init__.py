"""What is checked before the first forward pass, from headers and names; see docs/checks.md."""

from mechprobe.preflight.checkpoint import check_checkpoint, check_loadable
from mechprobe.preflight.header import (
    Header,
    read_header,
    require_dense,
    require_hooks,
    require_layer,
)
from mechprobe.preflight.output import require_writable
from mechprobe.preflight.problems import CHECKS, Check, Problems
from mechprobe.preflight.same_model import Shape, require_same_model
from mechprobe.preflight.vocabulary import require_same_vocabulary

__all__ = [
    "CHECKS",
    "Check",
    "Header",
    "Problems",
    "Shape",
    "check_checkpoint",
    "check_loadable",
    "read_header",
    "require_dense",
    "require_hooks",
    "require_layer",
    "require_same_model",
    "require_same_vocabulary",
    "require_writable",
]
