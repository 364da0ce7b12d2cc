"""One observational pass over a cell, for all probes together.

Each probe states what it reads (`Need`); the union is captured once, prompt set by prompt set, into
stores on disk. A baseline is observed once and read from its stores afterwards, so that two models
are never in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.activations.plan import LOGITS
from mechprobe.activations.store import MANIFEST as CAPTURE
from mechprobe.activations.store import ActivationStore
from mechprobe.errors import PromptFileError, StaleStoreError, StoreError
from mechprobe.models.memory import give_back
from mechprobe.models.rendering import require_parity
from mechprobe.preflight import Shape
from mechprobe.probes.shared_weights import SharedWeights, compare, digests
from mechprobe.progress import Progress, part_of_all, silent
from mechprobe.textfiles import parse_json, read_object

if TYPE_CHECKING:
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

MANIFEST, WEIGHTS = "observation.json", "weights.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Need:
    """What a probe reads of one prompt set."""

    prompts: str
    """Name of the set, such as `evaluate/harmful`."""
    points: tuple[str, ...] = ()
    """Hook names or globs."""
    positions: tuple[int, ...] = (-1,)
    """Counted from the end of the prompt."""
    logits: bool = False
    """Whether it reads the logits after the last token."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Which cell was observed."""

    source: str
    precision: str
    kernel: str
    model_digest: str
    n_layers: int
    forward_tokens: int
    """Tokens that went through the model, the shared prefix once for each prompt set."""
    architecture: str = ""
    """transformers' `model_type`; empty in observations of older versions."""
    width: int | None = None
    """Of the residual stream."""
    rows: int | None = None
    """Of the embedding."""

    @property
    def shape(self) -> Shape:
        """What every form of the model has in common."""
        return Shape(self.source, self.architecture, self.n_layers, self.width, self.rows)


class Observation:
    """What one cell showed: activations and logits by prompt set, read from disk on demand."""

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path = path
        self.facts = facts
        self._stores: dict[str, ActivationStore] = {}

    @classmethod
    def open(cls, path: str | Path) -> Observation:
        """What `observe` left in a folder.

        Raises:
            StoreError: There is none, or it is unfinished or unreadable.
        """
        folder = Path(path)
        try:
            found: dict[str, Any] = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
            if found.pop("schema") != SCHEMA:
                raise StoreError(f"{folder}: written by another version; observe the cell again")
            return cls(folder, Facts(**found))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{folder}: holds no finished observation ({error})") from error

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """Names of the prompt sets that were observed."""
        found = self.path.glob(f"*/*/{CAPTURE}")
        return tuple(sorted(f"{file.parts[-3]}/{file.parts[-2]}" for file in found))

    def store(self, prompts: str) -> ActivationStore:
        """The store of one prompt set.

        Raises:
            StoreError: It was not observed.
        """
        if prompts not in self._stores:
            self._stores[prompts] = ActivationStore.open(self.path / prompts)
        return self._stores[prompts]

    def digest(self, prompts: str) -> str:
        """SHA-256 of a prompt set's token ids."""
        return self.store(prompts).plan.prompts

    def read(self, prompts: str, name: str, rows: Iterable[int] | None = None) -> NDArray[Any]:
        """Stored numbers of some prompts, all by default, shape (prompt, position, width).

        Raises:
            HookNameError: The point was not observed.
            StoreError: The store is damaged.
        """
        store = self.store(prompts)
        try:
            return store[name] if rows is None else store.read(name, list(rows))
        except StoreError as error:
            raise StoreError(
                f"{str(error).partition(';')[0]}; delete the folder {self.path} and run the same "
                "command again"
            ) from error

    def values(self, prompts: str, point: str, positions: Iterable[int] = (-1,)) -> NDArray[Any]:
        """Activations at one point, shape (prompt, position, width), float64.

        Raises:
            HookNameError: The point was not observed.
            StoreError: A position was not, or the store is damaged.
        """
        store = self.store(prompts)
        wanted = list(positions)
        if missing := [place for place in wanted if place not in store.positions]:
            raise StoreError(f"{store.path}: positions {missing} were not observed")
        at = [store.positions.index(place) for place in wanted]
        return self.read(prompts, point)[:, at].astype(np.float64)

    def last(self, prompts: str, point: str) -> NDArray[np.float64]:
        """Activations at the last prompt token, shape (prompt, width), float64."""
        return self.values(prompts, point)[:, 0]

    def logits(self, prompts: str) -> NDArray[np.float64]:
        """Logits after the last prompt token, shape (prompt, vocabulary), float64."""
        return self.read(prompts, LOGITS)[:, 0].astype(np.float64)

    def shared_with(self, baseline: Observation) -> SharedWeights | None:
        """Which layers' weights equal the baseline's; None where that was not looked at."""
        found = []
        for each in (self, baseline):
            file = each.path / WEIGHTS
            if not file.exists():
                return None
            found.append(read_object(file, StoreError))
        return compare(*found)

    def require_parity(self, baseline: Observation, prompts: str) -> None:
        """Refuse to compare cells that saw different token ids.

        Raises:
            ParityError: They did.
        """
        require_parity(baseline.digest(prompts), self.digest(prompts), f"probes, {prompts}")


def observe(
    checkpoint: Checkpoint,
    prompts: Mapping[str, EncodedPrompts],
    needs: Iterable[Need],
    path: str | Path,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Observation:
    """Run each prompt set that is needed through the model once.

    Args:
        checkpoint: One with a graph.
        prompts: Prompt sets by name, `split/label`; no prompt may be in two of them.
        needs: Of all probes.
        path: A folder; a killed observation goes on from its last shard.
        batch_size: Prompts in memory at once.
        progress: Told of prompts done and in all.

    Raises:
        PromptFileError: A needed set is missing, or a prompt is in two sets.
        HookNameError: A point is unknown, or a position lies before a prompt's start.
        StoreError: The folder holds another observation, or cannot be written.
        NumericsError: NaN or infinity.
    """
    from mechprobe.activations.capturing import capture
    from mechprobe.activations.points import n_layers, resolve_points

    folder = Path(path)
    tokens = done = 0
    wanted = wanted_of(prompts, needs)
    total = sum(len(prompts[need.prompts]) for need in wanted)
    for need in wanted:
        store = capture(
            checkpoint,
            prompts[need.prompts],
            resolve_points(checkpoint, need.points) if need.points else (),
            need.positions,
            folder / need.prompts,
            batch_size=batch_size,
            logits=need.logits,
            progress=part_of_all(progress, done, len(prompts[need.prompts]), total),
        )
        done += len(prompts[need.prompts])
        give_back()
        shared = store.plan.prefix
        tokens += shared + sum(len(ids) - shared for ids in prompts[need.prompts])
    shape = shape_of(checkpoint)
    facts = Facts(
        checkpoint.source,
        checkpoint.quant.precision,
        checkpoint.kernel,
        checkpoint.digest,
        n_layers(checkpoint),
        tokens,
        shape.architecture,
        shape.width,
        shape.rows,
    )
    (folder / WEIGHTS).write_text(json.dumps(digests(checkpoint)) + "\n", encoding="utf-8")
    text = json.dumps({"schema": SCHEMA, **asdict(facts)}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Observation(folder, facts)


def shape_of(checkpoint: Checkpoint) -> Shape:
    """Describe a loaded model as its header does."""
    from mechprobe.activations.points import graph_of, n_layers

    model, _ = graph_of(checkpoint)
    config = model.config.get_text_config()
    rows = model.get_input_embeddings().weight.shape[0]
    return Shape(
        checkpoint.source, config.model_type, n_layers(checkpoint), config.hidden_size, rows
    )


def wanted_of(prompts: Mapping[str, EncodedPrompts], needs: Iterable[Need]) -> tuple[Need, ...]:
    """One need per prompt set, see `merge_needs`, of prompts that are there.

    Raises:
        PromptFileError: A needed set is missing, or a prompt is in two sets.
    """
    wanted = merge_needs(needs)
    if missing := sorted({need.prompts for need in wanted} - set(prompts)):
        raise PromptFileError(f"prompt sets {missing} are needed; there are {sorted(prompts)}")
    _require_disjoint({need.prompts: prompts[need.prompts] for need in wanted})
    return wanted


def require_whole(path: str | Path) -> None:
    """Read every stored number of a folder against its checksum, finished or not.

    Raises:
        StaleStoreError: Something in it is damaged.
    """
    for manifest in sorted(Path(path).glob(f"*/*/{CAPTURE}")):
        store = ActivationStore.open(manifest.parent)
        try:
            for shard in store.finished_shards():
                for name in store.names:
                    store.read_shard(shard, name)
        except StoreError as error:
            raise StaleStoreError(str(error)) from error


def merge_needs(needs: Iterable[Need]) -> tuple[Need, ...]:
    """One need per prompt set: the union of what all probes read."""
    merged: dict[str, Need] = {}
    for need in needs:
        old = merged.get(need.prompts, Need(need.prompts, positions=()))
        merged[need.prompts] = Need(
            need.prompts,
            tuple(dict.fromkeys((*old.points, *need.points))),
            tuple(sorted({*old.positions, *need.positions})),
            old.logits or need.logits,
        )
    return tuple(merged[name] for name in sorted(merged))


def _require_disjoint(prompts: Mapping[str, EncodedPrompts]) -> None:
    owner: dict[tuple[int, ...], str] = {}
    for name, encoded in prompts.items():
        for ids in encoded:
            first = owner.setdefault(ids, name)
            if first != name:
                raise PromptFileError(f"a prompt is both in {first} and in {name}")
