"""The plan of a capture: everything that its stored numbers depend on, decided beforehand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from mechprobe.textfiles import parse_json

SCHEMA = 1
LOGITS = "logits"
"""Stored among the points where a capture asks for them: the last position's, (prompt, 1, id)."""
StoreDtype = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What a store holds, decided before the first number: two captures mix only if it is equal."""

    model: str
    """Digest of the weights."""
    kernel: str
    compute: str
    """Format the model ran in, such as `float32`."""
    prompts: str
    """Digest of the token ids."""
    points: tuple[str, ...]
    positions: tuple[int, ...]
    """Counted from the end of the prompt; -1 is its last token."""
    dtype: StoreDtype
    order: tuple[int, ...]
    """The prompt of each stored row."""
    batch_size: int
    shard_rows: int
    prefix: int
    """Leading tokens computed once for all prompts; 0 where nothing was shared."""
    interventions: str
    """What was done to the model meanwhile, in words; empty for nothing."""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def n_shards(self) -> int:
        """Shards of the finished store."""
        return -(-len(self.order) // self.shard_rows)

    def n_positions(self, name: str) -> int:
        """Length of the position axis of a stored array."""
        return 1 if name == LOGITS else len(self.positions)

    def shard_prompts(self, shard: int) -> tuple[int, ...]:
        """The prompts whose rows lie in a shard, in its order."""
        return self.order[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def to_json(self) -> str:
        """Canonical text of the plan."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> CapturePlan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: The text is not a plan of this schema.
        """
        from pydantic import TypeAdapter, ValidationError

        found = parse_json(text)
        known = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or set(found) - known:
            raise ValueError(f"not a capture plan of schema {SCHEMA}")
        try:
            plan: CapturePlan = TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{[*first['loc']]}: {first['msg'].lower()}") from error
        if plan.shard_rows < 1 or sorted(plan.order) != list(range(len(plan.order))):
            raise ValueError("order and shard_rows give no rows of shards")
        return plan

    def differences(self, other: CapturePlan) -> str:
        """Names of the fields in which two plans differ."""
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(key for key in ours if ours[key] != theirs[key])
