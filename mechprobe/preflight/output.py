"""Whether results can be written where they are asked for; nothing is left there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from mechprobe.journal import explained


def require_writable(path: Path, *, folder: bool) -> None:
    """Refuse a place that cannot be written: found at once, and not after hours of work.

    Args:
        path: A file or folder, there or not.
        folder: Whether it is a folder that files are put into.

    Raises:
        RunDirectoryError: Something else is in its way, or the disk or its rights forbid it.
    """
    with explained(path):
        if path.exists() and path.is_dir() != folder:
            number = errno.ENOTDIR if folder else errno.EISDIR
            raise OSError(number, os.strerror(number))
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with tempfile.TemporaryFile(dir=_folder_of(path, folder)):
            pass


def _folder_of(path: Path, folder: bool) -> Path:
    """The folder that is or will be written into, as far up as it exists."""
    places = [path.absolute(), *path.absolute().parents][0 if folder else 1 :]
    return next(place for place in places if place.exists())
