"""Floor 11: the command line. Importing it loads neither torch nor the commands."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mechprobe` with these arguments, or with those of the process; returns the exit code."""
    from mechprobe.cli.app import run

    return run(argv)
