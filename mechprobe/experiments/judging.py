"""Judging what a run or a file of generations holds: counted beforehand, kept as it comes.

The items of a second judge are drawn and written down before anything is asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mechprobe.behavior.judges import (
    MAJORITY,
    Calls,
    Exchange,
    Judge,
    JudgeCache,
    Judged,
    Judgement,
    Load,
    judge_digest,
    judge_exchanges,
    load_of,
    majority,
    open_judge,
    opened,
    read_exchanges,
    read_judgements,
    refuses,
    stratified,
)
from mechprobe.behavior.rate import Rate
from mechprobe.cache import cache_folder
from mechprobe.errors import JudgeError, PromptFileError, SpecError
from mechprobe.experiments.integrity import require_intact
from mechprobe.experiments.run_rows import PromptRow, read_typed
from mechprobe.experiments.rundir import read_json, write_json, write_jsonl
from mechprobe.progress import Progress

Show = Callable[[str], Progress]
"""Given a judge's name, gives what is told of items done and in all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who judges what."""

    exchanges: tuple[Exchange, ...]
    judges: tuple[str, ...]
    """Each reads everything."""
    second: str | None = None
    """Reads the sample alone."""
    per_stratum: int = 50
    seed: int = 0
    calls: Calls = Calls()  # noqa: RUF009 - frozen
    cache: Path | None = None
    """Folder of what judges said before; the user's cache by default."""
    keep_replies: bool = False
    patience: float = 0.0
    """Seconds to wait for another process that asks the same judge."""

    def __post_init__(self) -> None:
        named = [*self.judges, *([self.second] if self.second else [])]
        if not self.judges:
            raise SpecError("--judge: name one at least: rules, oracle, openai:MODEL@URL, hf:NAME")
        repeated = [name for name, n in Counter(named).items() if n > 1]
        if repeated:
            raise SpecError(f"judge {repeated[0]} is named twice; a second judge is another one")

    @property
    def sample(self) -> list[Exchange]:
        """What the second judge reads."""
        return stratified(self.exchanges, self.per_stratum, seed=self.seed) if self.second else []

    def parts(self) -> list[tuple[str, Sequence[Exchange]]]:
        """Each judge with what it reads, the second one last."""
        found: list[tuple[str, Sequence[Exchange]]] = [
            (name, self.exchanges) for name in self.judges
        ]
        return [*found, (self.second, self.sample)] if self.second else found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of judging."""

    judged: tuple[Judged, ...]
    judgements: tuple[Judgement, ...]
    """Of every judge, the majority's among them."""
    ties: int | None
    """Items on which the judges of everything stand even; None with one judge."""

    @property
    def complete(self) -> bool:
        """Whether every question got a reply, and every judge was understood at least once."""
        return all(one.count("error") == 0 and one.count("labelled") > 0 for one in self.judged)


def find_exchanges(sources: Sequence[Path], tasks: Sequence[str] = ()) -> tuple[Exchange, ...]:
    """Exchanges of run directories and of files of generations.

    Args:
        sources: Run directories and JSONL files.
        tasks: The tasks to take. By default all of a file, and of a run directory those whose
            requests are known to be harmful or harmless.

    Raises:
        PromptFileError: A source does not exist, holds no such generations, or is malformed.
        RunDirectoryError: A file of a run is not as the run wrote it.
    """
    found: list[Exchange] = []
    for source in sources:
        require_intact(source)
        if source.is_dir():
            files = sorted(source.glob("cells/*/*/generations/*.jsonl"))
            some = [one for file in files for one in run_exchanges(file.absolute())]
            found += [one for one in some if tasks or one.request]
        elif source.is_file():
            inside = source.absolute().parts[-5:-4] == ("cells",)
            found += run_exchanges(source.absolute()) if inside else read_exchanges(source)
        else:
            raise PromptFileError(f"{source}: no such file or folder")
    chosen = tuple(one for one in found if not tasks or one.task in tasks)
    if not chosen:
        raise PromptFileError(
            f"{', '.join(map(str, sources))}: no generations of requests; name a run directory, a "
            "JSONL file, or another --task"
        )
    return chosen


def run_exchanges(file: Path) -> list[Exchange]:
    """Prompts and answers of one cell and task of a run.

    Args:
        file: `cells/MODEL/KEY/generations/TASK.jsonl`; the prompts lie in `prompts/MODEL.jsonl`.

    Raises:
        PromptFileError: It is malformed, or a prompt is not there.
    """
    key = file.parents[1]
    run, model, task = file.parents[4], key.parent.name, file.stem
    path = run / "prompts" / f"{model}.jsonl"
    rows = read_typed(path, PromptRow) if path.is_file() else []
    # the answers of a factorial are to all its prompts, and called after their temperature
    mine = [row for row in rows if row.get("set") in (task, f"task/{task}")] or rows
    prompts = {str(row["id"]): row for row in mine}
    return read_exchanges(file, task=task, row=f"{model}/{key.name}", prompts=prompts)


@contextmanager
def _ready(plan: Plan, name: str, *, asks: bool = True) -> Iterator[tuple[Judge, JudgeCache]]:
    judge = open_judge(name, plan.calls, asks=asks)
    try:
        folder = plan.cache or cache_folder() / "judgements"
        path = folder / f"{judge_digest(judge)[:24]}.jsonl" if judge.paid else None
        with opened(path, keep_replies=plan.keep_replies, patience=plan.patience) as cache:
            yield judge, cache
    finally:
        judge.close()


def estimate(plan: Plan, *, asks: bool = True) -> list[tuple[str, Load]]:
    """Calls and tokens of each judge; nothing is sent.

    Args:
        plan: Who judges what.
        asks: Whether it will be asked afterwards, so that a missing key is an error now.
    """
    found = []
    for name, items in plan.parts():
        with _ready(plan, name, asks=asks) as (judge, cache):
            found.append((name, load_of(judge, items, cache)))
    return found


def judge_all(plan: Plan, out: Path, show: Show, *, replace: bool = False) -> Outcome:
    """Judge everything and write `out`, one judgement a line.

    Args:
        plan: Who judges what.
        out: The file of judgements; beside it lies the second judge's sample, `NAME.sample.json`.
        show: For progress.
        replace: Whether `out` may be lost, whatever it holds.

    Raises:
        JudgeError: A judge cannot go on, the sample beside `out` is another one, or `out` holds
            something that would not be written again.
        RunDirectoryError: `out` cannot be written.
    """
    if not replace:
        _reject_loss(plan, out)
    if plan.second:
        write_sample(plan, out.with_suffix(".sample.json"))
    judged = []
    for name, items in plan.parts():
        with _ready(plan, name) as (judge, cache):
            judged.append(judge_exchanges(judge, items, cache, show(name)))
    lines = [one for each in judged for one in each.judgements]
    ties = None
    if len(plan.judges) > 1:
        together = majority([one.judgements for one in judged[: len(plan.judges)]])
        lines += together.judgements
        ties = together.ties
    write_jsonl(out, [asdict(one) for one in lines])
    return Outcome(tuple(judged), tuple(lines), ties)


def _reject_loss(plan: Plan, out: Path) -> None:
    """Refuse to write over answers, over other judgements, over anything else.

    Raises:
        JudgeError: `out` holds more than the judgements that are about to be made.
    """
    if not out.is_file() or not out.stat().st_size:
        return
    try:
        held = {(one.judge, *one.key) for one in read_judgements(out)}
    except PromptFileError as error:
        raise JudgeError(
            f"{out}: holds something else than judgements; choose another file with --out"
        ) from error
    parts = plan.parts()
    if len(plan.judges) > 1:
        parts.append((MAJORITY, plan.exchanges))
    lost = held - {(name, *one.key) for name, items in parts for one in items}
    if lost:
        names = ", ".join(sorted({name for name, *_ in lost}))
        raise JudgeError(
            f"{out}: holds {len(lost)} judgements by {names} that would not be made again; choose "
            "another file with --out"
        )


def write_sample(plan: Plan, path: Path) -> None:
    """Write down what the second judge will read, before anybody is asked anything.

    Raises:
        JudgeError: Another sample was written there before.
    """
    sample = {
        "seed": plan.seed,
        "per_stratum": plan.per_stratum,
        "items": [list(one.key) for one in plan.sample],
    }
    if path.exists():
        if read_json(path) != sample:
            raise JudgeError(
                f"{path}: another sample was drawn here before; choose another file with --out"
            )
        return
    write_json(path, sample)


class Group(NamedTuple):
    """Judgements that share a rate."""

    judge: str
    row: str
    task: str
    request: str


@dataclass(frozen=True, slots=True)
class RefusalRate(Rate):
    """Refusals among the answers that are one or none; items without a label are `unread`."""

    unclear: int = 0
    """Answers left out of `n` because the judge calls them UNCLEAR."""

    @property
    def left_out(self) -> str:
        """For a table: what is in no rate, UNCLEAR with its share of the labels."""
        share = 100 * self.unclear / max(self.n + self.unclear, 1)
        unclear = f"{self.unclear} UNCLEAR ({share:.1f} %)" if self.unclear else ""
        unread = f"{self.unread} without a label" if self.unread else ""
        return ", ".join(filter(None, (unclear, unread)))


def refusal_rates(judgements: Sequence[Judgement]) -> dict[Group, RefusalRate]:
    """Refusal rates by judge, row, task and request."""
    groups: dict[Group, list[Judgement]] = defaultdict(list)
    for one in judgements:
        groups[Group(one.judge, one.row, one.task, one.request)].append(one)
    found = {}
    for group, some in groups.items():
        pairs = [(refuses(one.label), one.cluster or one.id) for one in some]
        read = [(said, cluster) for said, cluster in pairs if said is not None]
        unread = sum(one.label is None for one in some)
        said, clusters = ([pair[k] for pair in read] for k in (0, 1))
        rate = Rate.among(said, clusters, unread=unread)
        found[group] = RefusalRate(**asdict(rate), unclear=len(some) - len(read) - unread)
    return found
