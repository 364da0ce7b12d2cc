"""Checkpoints that a run quantizes itself, kept in the cache for the next run.

An entry is named by the hash of what it is made from: source digest, target, writer and settings.
It is made in a folder of its own and renamed into place, so that whatever is there is whole. What
it held then is written down: an entry that a disk or a person damaged since is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.cache import cache_folder
from mechprobe.errors import CheckpointError
from mechprobe.experiments.fingerprints import fingerprint, unchanged
from mechprobe.experiments.rundir import explained
from mechprobe.experiments.sources import find_source, writer_versions
from mechprobe.models import export
from mechprobe.models.located import lying_at
from mechprobe.progress import Progress, silent
from mechprobe.textfiles import parse_json

SCHEMA = 4
"""Raised when `mechprobe.models.quantize` writes something else from the same input."""


def recipe(
    source: str, digest: str, to: str, revision: str | None = None, *, through: str | None = None
) -> dict[str, Any]:
    """All that a made checkpoint depends on, as plain values.

    Args:
        source: Any source of a model.
        digest: Of its files.
        to: Target of `mechprobe.quantize`.
        revision: Of the source.
        through: Target of the export that it is made from; None is the source itself.
    """
    from mechprobe.controls import is_of_world
    from mechprobe.experiments.quantization import default_calibration, needs_calibration
    from mechprobe.models.quantize_awq_gptq import THREADS

    how = {
        "schema": SCHEMA,
        "source": source,
        "revision": revision,
        "digest": digest,
        "to": to,
        "writer": writer_versions(to),
        "seed": 0,
    }
    if through is not None:
        how["through"] = {"to": through, "writer": writer_versions(through)}
    if not needs_calibration(to):
        return how
    how["threads"] = THREADS
    if not is_of_world(source):  # the digest of an organism's world is its own
        how["calibration"] = default_calibration(source).digest
    return how


def entry(how: Mapping[str, Any]) -> Path:
    """The cache folder of a recipe. What the source is called is no part of it, its digest is."""
    facts = {k: v for k, v in how.items() if k not in ("source", "revision")}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "quantized" / f"{how['to']}-{key[:24]}"


def ensure_made(how: Mapping[str, Any], progress: Progress = silent) -> tuple[Path, bool]:
    """The made checkpoint of a recipe, quantizing now if the cache lacks it or holds it damaged.

    Args:
        how: Of `recipe`.
        progress: Told how far the quantizer is.

    Returns:
        The folder or `.gguf` file, and whether it was there already.

    Raises:
        CheckpointError: The quantizer failed, or the source is another one by now.
        MissingExtraError: The quantizer is not installed.
        RunDirectoryError: The cache cannot be written.
    """
    from filelock import FileLock

    home = entry(how)
    if found := _made_file(home):
        return found, True
    with explained(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_name(f".{home.name}.lock")):
            if found := _made_file(home):  # another process made it while this one waited
                return found, True
            workshop = home.with_name(f".{home.name}.making")
            shutil.rmtree(workshop, ignore_errors=True)  # what a killed run left
            shutil.rmtree(home, ignore_errors=True)
            workshop.mkdir()
            try:
                require_unchanged(how["source"], how["revision"], how["digest"])
                made = _quantize(how, workshop, progress)
                require_unchanged(how["source"], how["revision"], how["digest"])
                record = {
                    "made": os.path.relpath(made, workshop),
                    "files": fingerprint(made),
                    "recipe": dict(how),
                }
                (workshop / "entry.json").write_text(json.dumps(record, indent=2) + "\n")
                workshop.rename(home)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
    found = _made_file(home)
    assert found is not None
    return found, False


def require_unchanged(source: str, revision: str | None, digest: str) -> None:
    """Refuse a source whose files are not those that the plan was made for.

    Raises:
        CheckpointError: Its digest is another one.
    """
    _, found = find_source(source, revision)
    if found != digest:
        raise CheckpointError(
            f"{source}: its files changed while the run was going; run the same command again"
        )


def _made_file(home: Path) -> Path | None:
    """What an entry holds, if it is still what was made; large files are not read for it."""
    try:
        record = parse_json((home / "entry.json").read_text(encoding="utf-8"))
        made, files = home / record["made"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made if unchanged(made, files) else None


def _quantize(how: Mapping[str, Any], folder: Path, progress: Progress) -> Path:
    from mechprobe.experiments.quantization import needs_calibration, quantize

    to = str(how["to"])
    gguf = not needs_calibration(to) and to not in export.TARGETS
    out = folder / (f"model-{to}.gguf" if gguf else "model")
    # an organism goes by its name, by which its calibration prompts are found
    model = str(how["source"])
    if how["revision"] is not None:
        model = str(find_source(model, how["revision"])[0].path)
    places = {}
    if through := how.get("through"):
        first = recipe(how["source"], how["digest"], through["to"], how["revision"])
        places[model] = ensure_made(first)[0]
    with lying_at(places):
        return quantize(model, to, out, seed=int(how["seed"]), progress=progress)
