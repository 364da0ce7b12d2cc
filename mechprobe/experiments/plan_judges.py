"""The judges of a run as steps: who reads which answers of a cell. Nobody is asked yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechprobe.behavior.judges import Calls, about_server, judge_digest, open_judge
from mechprobe.behavior.judges.base import digest
from mechprobe.experiments.sources import find_source
from mechprobe.experiments.spec import Spec
from mechprobe.experiments.spec_judges import JudgeSpec, SecondJudge
from mechprobe.experiments.suite import absent, asked, wants
from mechprobe.experiments.yaml_lines import Location
from mechprobe.generation.endpoint import Endpoint

ORACLE = "oracle"
WORLD = "organism"


@dataclass(frozen=True, slots=True)
class JudgePart:
    """One judge on one task of a cell."""

    judge: str
    task: str
    name: str
    """Of the step."""
    outputs: tuple[str, ...]
    """Judgements, and for a second judge its sample."""
    params: dict[str, Any]


def judged_file(judge: str, task: str) -> str:
    """Where a cell keeps one judge's labels of one task."""
    return f"judgements/{task}.{_slug(judge)}.jsonl"


def judge_parts(spec: Spec) -> dict[str, list[JudgePart]]:
    """What is judged in every cell, by task.

    Raises:
        SpecError: A judge is unknown or named twice, there is nothing for it to read, or the
            oracle is asked about another world.
        CheckpointError: A classifier is not there.
    """
    tasks = _requests(spec)
    judges = judges_of(spec)
    found: dict[str, list[JudgePart]] = {name: [] for name in tasks}
    named: set[str] = set()
    for at, judge in judges:
        if judge.judge in named:
            raise spec.mistake(at, f"{judge.judge} is named twice; a second judge is another one")
        named.add(judge.judge)
        with spec.field(*at):
            identity = judge_identity(judge)
        mine = [name for name, world in tasks.items() if world or judge.judge != ORACLE]
        if not mine:
            own = ", of the organism: the oracle knows no others" if judge.judge == ORACLE else ""
            raise spec.mistake(
                at,
                f"{judge.judge} has no answers to requests to read here; add the task refusal, "
                f"jailbreak or over_refusal{own}",
            )
        for name in mine:
            found[name].append(_part(judge, name, identity))
    return found


def judge_identity(judge: JudgeSpec) -> str:
    """SHA-256 over everything that decides a judge's labels, hex, found without asking it.

    Raises:
        SpecError: No judge is spelled so.
        CheckpointError: A classifier is not there.
    """
    text = judge.judge
    if text.startswith("openai:"):
        return digest(about_server(Endpoint.parse(text), calls_of(judge)))
    if text.startswith("hf:"):
        from mechprobe.behavior.judges.classifier import spelled

        model, revision, settings = spelled(text)
        return digest(["hf", find_source(model, revision)[1], settings])
    return judge_digest(open_judge(text))


def calls_of(judge: JudgeSpec) -> Calls:
    """How its server is called."""
    chosen = judge.model_dump(exclude={"judge", "per_stratum", "seed"})
    return Calls(**chosen)


def judges_of(spec: Spec) -> list[tuple[Location, JudgeSpec]]:
    """Those of the spec, and where they stand in it.

    Without any the oracle reads what the organisms answer: it is free.
    """
    tasks = spec.tasks
    given = tasks.judges
    if given is None:
        known = spec.prompts.source == WORLD and tasks.refusal is not None
        given = (JudgeSpec(judge=ORACLE),) if known else ()
    found: list[tuple[Location, JudgeSpec]] = [
        (("tasks", "judges", i), one) for i, one in enumerate(given)
    ]
    return [*found, *([(("tasks", "second"), tasks.second)] if tasks.second else [])]


def _requests(spec: Spec) -> Mapping[str, bool]:
    """Tasks whose written answers are to harmful or harmless requests; whether of the world."""
    found = {"refusal": spec.prompts.source == WORLD} if spec.tasks.refusal else {}
    for more in spec.tasks.more:
        own = more.answers is None and absent(more) is None
        if own and wants(more) == "text" and any(item.label for item in asked(more).items):
            found[more.label] = asked(more).source == WORLD
    return found


def _part(judge: JudgeSpec, task: str, identity: str) -> JudgePart:
    second = isinstance(judge, SecondJudge)
    file = judged_file(judge.judge, task)
    sample = (file.removesuffix(".jsonl") + ".sample.json",) if second else ()
    drawn = judge.model_dump(include={"per_stratum", "seed"}) if second else None
    plain = judge.model_dump(exclude={"per_stratum", "seed"})
    return JudgePart(
        judge=judge.judge,
        task=task,
        name=f"judge-{task}.{_slug(judge.judge)}",
        outputs=(file, *sample),
        params={"judge": plain, "identity": identity, "task": task, "sample": drawn},
    )


def _slug(judge: str) -> str:
    """A name that any file system takes, and that no other judge has."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", judge).strip("-")[:40]
    return plain if plain == judge else f"{plain}-{hashlib.sha256(judge.encode()).hexdigest()[:8]}"
