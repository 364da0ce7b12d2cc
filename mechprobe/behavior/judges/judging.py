"""Judging many exchanges: each content once, nothing paid twice, nothing labelled by accident."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mechprobe.behavior.judges.base import Exchange, Judge, Judgement, Load, digest
from mechprobe.behavior.judges.cache import JudgeCache
from mechprobe.behavior.refusal import answer_of
from mechprobe.errors import JudgeError, PromptFileError
from mechprobe.progress import Progress, silent

_IN_A_ROW = 20
"""Questions in a row, each tried several times, after which a server is taken to be gone."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one judge said of some exchanges."""

    judge: str
    judgements: tuple[Judgement, ...]
    """In the order of the exchanges."""
    calls: int
    """Paid questions answered in this run; those answered before cost nothing."""
    prompt_tokens: int
    completion_tokens: int

    def count(self, status: str) -> int:
        """Judgements of one status."""
        return sum(one.status == status for one in self.judgements)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Contents by key: what each exchange needs, and what is there to be asked."""

    keys: tuple[str | None, ...]
    """Per exchange; None where thinking never ended, so that there is no answer to read."""
    pairs: Mapping[str, tuple[str, str]]


def judge_digest(judge: Judge) -> str:
    """SHA-256 over everything that decides a judge's labels, hex."""
    return digest(judge.about)


def _plan(judge: Judge, exchanges: Sequence[Exchange]) -> _Plan:
    """The contents of exchanges.

    Raises:
        PromptFileError: Two exchanges share task, row, id and sample.
    """
    identity = judge_digest(judge)
    keys: list[str | None] = []
    pairs: dict[str, tuple[str, str]] = {}
    seen = set()
    for one in exchanges:
        if one.key in seen:
            raise PromptFileError(
                f"row {one.row!r}, task {one.task!r}: id {one.id!r} is given twice; number "
                "repeated samples with the field 'sample'"
            )
        seen.add(one.key)
        answer = answer_of(one.text)
        key = None if answer is None else digest([identity, one.prompt, answer])
        keys.append(key)
        if key is not None and answer is not None:
            pairs[key] = (one.prompt, answer)
    return _Plan(tuple(keys), pairs)


def load_of(judge: Judge, exchanges: Sequence[Exchange], cache: JudgeCache) -> Load:
    """What judging would ask and cost; nothing is sent."""
    plan = _plan(judge, exchanges)
    left = [pair for key, pair in plan.pairs.items() if _unsettled(judge, cache, key)]
    sizes = [judge.tokens(*pair) for pair in left]
    done = sum(key is None or not _unsettled(judge, cache, key) for key in plan.keys)
    paid = judge.paid
    return Load(
        items=len(exchanges),
        finished=done,
        calls=len(left) if paid else 0,
        tries=judge.tries,
        prompt_tokens=sum(size[0] for size in sizes),
        completion_tokens=sum(size[1] for size in sizes),
    )


def judge_exchanges(
    judge: Judge,
    exchanges: Sequence[Exchange],
    cache: JudgeCache | None = None,
    progress: Progress = silent,
) -> Judged:
    """Label exchanges; equal contents are asked about once.

    A reply that is no label is asked for again, `judge.tries` times in all, and then recorded as
    `unparsed`. A question without a reply becomes an `error`, which the next run asks again. An
    answer cut off while thinking is UNCLEAR without being asked about.

    Args:
        judge: The judge.
        exchanges: In any order.
        cache: What the judge said before, and where new replies go at once.
        progress: Told of contents settled, and of all.

    Raises:
        JudgeError: The server is gone, or refuses everything; what it answered is kept.
        PromptFileError: Two exchanges share task, row, id and sample.
    """
    kept = cache if cache is not None else JudgeCache()
    plan = _plan(judge, exchanges)
    problems: dict[str, str] = {}
    used = [0, 0, 0]
    for attempt in range(judge.tries):
        asked = [
            key
            for key in plan.pairs
            if _unsettled(judge, kept, key)
            and kept.get(key).asked <= attempt
            and key not in problems
        ]
        _ask(judge, plan, asked, attempt, kept, problems, used, progress)
    return Judged(
        judge.name,
        tuple(
            _judgement(judge, one, key, kept, problems)
            for one, key in zip(exchanges, plan.keys, strict=True)
        ),
        *used,
    )


def _unsettled(judge: Judge, cache: JudgeCache, key: str) -> bool:
    entry = cache.get(key)
    return entry.label is None and entry.asked < judge.tries


def _ask(
    judge: Judge,
    plan: _Plan,
    keys: Sequence[str],
    attempt: int,
    cache: JudgeCache,
    problems: dict[str, str],
    used: list[int],
    progress: Progress,
) -> None:
    total = len(plan.pairs)
    settled = sum(not _unsettled(judge, cache, key) for key in plan.pairs)
    in_a_row, gone = 0, ""

    def asked() -> Iterator[tuple[str, str]]:
        for key in keys:
            if gone:  # what is on its way is still waited for: it may have been paid for
                return
            yield plan.pairs[key]

    for number, opinion in judge.opinions(asked(), attempt):
        key = keys[number]
        if opinion.status == "error":
            problems[key] = opinion.problem
            in_a_row += opinion.passing
            if opinion.stops_all or in_a_row >= _IN_A_ROW:
                gone = gone or opinion.problem
            continue
        in_a_row = 0
        cache.add(key, judge.name, opinion)
        if judge.paid:
            for i, n in enumerate((1, opinion.prompt_tokens, opinion.completion_tokens)):
                used[i] += n
        settled += not _unsettled(judge, cache, key)
        progress(settled, total)
    if gone:
        raise JudgeError(f"{gone}; what was judged is kept, run the same command again")


def _judgement(
    judge: Judge,
    one: Exchange,
    key: str | None,
    cache: JudgeCache,
    problems: Mapping[str, str],
) -> Judgement:
    entry = cache.get(key) if key is not None else None
    label = entry.label if entry is not None else "UNCLEAR"
    problem = problems.get(key or "", "") if label is None else ""
    return Judgement(
        one.id,
        one.task,
        one.row,
        one.sample,
        one.request,
        one.cluster or one.id,
        judge.name,
        judge.version,
        judge_digest(judge),
        label,
        "labelled" if label is not None else "error" if problem else "unparsed",
        problem,
        entry.served if entry is not None else "",
    )


def reject_mixed(judgements: Iterable[Judgement]) -> None:
    """Refuse labels of one judge that were given under two prompts or settings.

    Raises:
        JudgeError: One name stands for two digests.
    """
    seen: dict[str, str] = {}
    for one in judgements:
        if seen.setdefault(one.judge, one.digest) != one.digest:
            raise JudgeError(
                f"{one.judge}: its labels come from two versions of judge or judge prompt, which "
                "are not comparable; judge everything again with one"
            )
