"""Floor 4: weights become text. Nothing here scores."""

from mechprobe.generation.base import Completion, Engine

__all__ = ["Completion", "Engine"]
