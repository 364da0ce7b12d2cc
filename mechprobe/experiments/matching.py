"""Which item of a task an answer of a file is to.

The prompt decides where the file has it: ids may be numbers of the user's own, and those of some
benchmarks are plain numbers too. An id tells equal prompts apart, and decides alone only where
nothing in the file contradicts it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechprobe.behavior.records import Record, sample_of
from mechprobe.behavior.tasks import Task
from mechprobe.errors import PromptFileError


class Place(NamedTuple):
    """What a record answers."""

    row: str
    item: str
    sample: int


class _Claim(NamedTuple):
    """What a record says of what it answers."""

    record: Record
    row: str
    sample: int
    named: str | None
    """The item of its id, where its prompt is that item's or is not given."""
    alike: Sequence[str]
    """The items of its prompt; empty without one."""
    contradicts: bool
    """Whether its id is that of an item with another prompt."""


def places(task: Task, records: Sequence[Record]) -> list[Place]:
    """What each record answers. Equal prompts without their items' ids are taken in order.

    Args:
        task: What was asked.
        records: With `id` or `prompt`, and `row` and `sample` where there are several.

    Raises:
        PromptFileError: A record is of no item or of one that is answered already, or ids that are
            another numbering stand beside answers without a prompt.
    """
    prompts = {item.id: item.prompt for item in task.items}
    alike: dict[str, list[str]] = defaultdict(list)
    for item in task.items:
        alike[item.prompt].append(item.id)
    claims = [_claim(task, record, prompts, alike) for record in records]
    _reject_other_numbering(task, claims)
    taken: set[Place] = set()
    found: dict[int, Place] = {}
    # those that name their item first, lest another with the same prompt takes its place
    for number, claim in sorted(enumerate(claims), key=lambda pair: pair[1].named is None):
        items = claim.alike if claim.named is None else [claim.named]
        free = [
            place for item in items if (place := Place(claim.row, item, claim.sample)) not in taken
        ]
        if not free:
            raise PromptFileError(
                f"{claim.record.where}: {items[0]} is answered twice; number repeated answers with "
                "'sample'"
            )
        found[number] = free[0]
        taken.add(free[0])
    return [found[number] for number in range(len(claims))]


def _claim(
    task: Task, record: Record, prompts: Mapping[str, str], alike: Mapping[str, Sequence[str]]
) -> _Claim:
    fields = record.fields
    name, prompt = str(fields.get("id", "")), str(fields.get("prompt") or "")
    items = alike.get(prompt, ()) if prompt else ()
    if prompt and name in prompts and not items:
        raise PromptFileError(
            f"{record.where}: its id is {task.name}'s, its prompt is not; name what was asked with "
            "--source and --option, or leave 'prompt' out where it is written otherwise"
        )
    if not items and name not in prompts:
        raise PromptFileError(
            f"{record.where}: neither its id nor its prompt is of {task.name} from {task.source}; "
            "name what was asked with --source and --option"
        )
    named = name if name in items or not items else None
    row = str(fields.get("row") or "")
    return _Claim(record, row, sample_of(record), named, items, named is None and name in prompts)


def _reject_other_numbering(task: Task, claims: Sequence[_Claim]) -> None:
    other = next((claim for claim in claims if claim.contradicts), None)
    bare = next((claim for claim in claims if not claim.alike), None)
    if other is not None and bare is not None:
        raise PromptFileError(
            f"{other.record.where}: its id is that of another item of {task.name} than its prompt, "
            f"so that ids say nothing here, and {bare.record.where} has no prompt; give it one"
        )
