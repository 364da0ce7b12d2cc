"""Where mechprobe keeps what it fetched or made, for every later run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder that `MECHPROBE_CACHE` names, else one in the user's cache folder."""
    import platformdirs

    named = os.environ.get("MECHPROBE_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("mechprobe"))
