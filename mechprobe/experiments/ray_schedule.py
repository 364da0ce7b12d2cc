"""Which cells of a run wait, which a worker of the cluster has, and what came of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.errors import MechprobeError, RunDirectoryError
from mechprobe.experiments.engine_local import is_ready, outcome_of, run_group
from mechprobe.experiments.executing import groups, record_failure, settled
from mechprobe.experiments.ray_files import Incoming, inputs_of, put_files
from mechprobe.experiments.ray_worker import Begun, Ended, Order, Piece, Started, work
from mechprobe.experiments.rundir import RunDirectory
from mechprobe.experiments.steps import Display, Outcome, Result, Step, step_key

OVERHEAD = 1 << 30
"""Bytes that a worker needs beside the weights: Python, torch, activations of a batch."""
_GENTLY = 16
"""Events that a worker may be ahead of us."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to place cells on."""

    ray: Any
    nodes: Sequence[dict[str, Any]]
    cores: float
    """That a cell gets."""
    retries: int
    """How often a cell is given to another worker after its own was lost."""


@dataclass
class _Placed:
    """A cell that a worker has."""

    group: list[Step]
    todo: list[Step]
    events: Any
    incoming: Incoming
    attempt: int
    where: Begun | None = None


class Schedule:
    """One run."""

    def __init__(
        self, cluster: Cluster, run: RunDirectory, display: Display, token: str, shared: bool
    ) -> None:
        self._cluster, self._run, self._display = cluster, run, display
        self._token, self._shared = token, shared
        self._ray = cluster.ray
        self._steps: dict[str, Step] = {}
        self._results: dict[str, Result] = {}
        self._placed: list[_Placed] = []
        self._work = self._ray.remote(num_returns="streaming", max_retries=0)(work)
        self.lost = 0
        """Workers that were lost."""

    def run(self, steps: Sequence[Step]) -> Outcome:
        """Bring every step to an end; see `RayEngine.run`."""
        waiting = groups(steps)
        self._steps = {step.name: step for step in steps}
        try:
            while waiting or self._placed:
                ready = [group for group in waiting if is_ready(group, self._results)]
                for group in ready:
                    waiting.remove(group)
                    self._begin(group, 1)
                if self._placed:
                    self._listen()
        finally:
            for placed in self._placed:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._ray.cancel(placed.events, force=True)
                placed.incoming.drop()
        return outcome_of(steps, self._results)

    def _begin(self, group: list[Step], attempt: int) -> None:
        """Place what is not done of a cell; what belongs to no cell runs here."""
        todo: list[Step] = []
        for step in group:
            if step.cell is None or step.after or step.name in self._results:
                continue
            away = any(name in {s.name for s in todo} for name in step.needs)
            result = None if away else settled(step, self._run, self._results)
            if result is None:
                todo.append(step)
            else:
                self._end(step, result)
        if todo and (reason := self._too_large(todo)):
            self._give_up(todo, reason)
            todo = []
        if not todo:
            self._finish(group)
            return
        files, places = ({}, {}) if self._shared else inputs_of(todo, self._steps, self._run)
        order = Order(
            steps=tuple(todo),
            known={n: self._results[n] for s in todo for n in s.needs if n in self._results},
            run=str(self._run.path),
            token=self._token,
            shared=self._shared,
            places=places,
        )
        memory, gpus = self._needs(todo)
        events = self._work.options(
            num_cpus=self._cluster.cores,
            num_gpus=gpus,
            memory=memory,
            name=f"mechprobe {todo[0].cell}",
            _generator_backpressure_num_objects=_GENTLY,
        ).remote(order, put_files(files, self._ray.put))
        incoming = Incoming(self._run, str(todo[0].cell))
        self._placed.append(_Placed(group, todo, events, incoming, attempt))

    def _needs(self, todo: Sequence[Step]) -> tuple[int, int]:
        memory = max(step.memory for step in todo)
        return (memory + OVERHEAD if memory else 0), max(step.gpus for step in todo)

    def _too_large(self, todo: Sequence[Step]) -> str | None:
        """Why no node will ever take these steps; None where one can."""
        memory, gpus = self._needs(todo)
        nodes = [node["Resources"] for node in self._cluster.nodes]
        for node in nodes:
            enough = node.get("memory", 0) >= memory and node.get("GPU", 0) >= gpus
            if enough and node["CPU"] >= self._cluster.cores:
                return None
        largest = max((node.get("memory", 0) for node in nodes), default=0)
        return (
            f"needs {memory / 2**30:.1f} GiB of memory, {gpus} GPUs and {self._cluster.cores:g} "
            f"cores; no node of the cluster has them (most memory: {largest / 2**30:.1f} GiB)"
        )

    def _listen(self) -> None:
        """Take the next event of whichever worker has one."""
        ready, _ = self._ray.wait(
            [placed.events for placed in self._placed], num_returns=1, timeout=1.0
        )
        for events in ready:
            placed = next(one for one in self._placed if one.events is events)
            try:
                event = self._ray.get(next(events))
            except StopIteration:
                self._placed.remove(placed)
                placed.incoming.drop()
                self._finish(placed.group)
            except self._ray.exceptions.RayTaskError as error:
                self._placed.remove(placed)
                placed.incoming.drop()
                self._fail(placed, error)
            except self._ray.exceptions.RayError as error:
                self._placed.remove(placed)
                placed.incoming.drop()
                self._again(placed, error)
            else:
                self._take(placed, event)

    def _take(self, placed: _Placed, event: object) -> None:
        if isinstance(event, Begun):
            placed.where = event
        elif isinstance(event, Started):
            self._display.started(self._steps[event.step])
        elif isinstance(event, Piece):
            placed.incoming.take(event)
        elif isinstance(event, Ended):
            step = self._steps[event.step]
            if not self._shared:
                placed.incoming.settle(step)
            self._end(step, event.result)

    def _fail(self, placed: _Placed, error: Any) -> None:
        """The worker lives and could not go on: a full disk ends the run, nothing else should."""
        cause = error.cause
        host = placed.where.host if placed.where else "a node"
        if isinstance(cause, RunDirectoryError):
            raise RunDirectoryError(f"{host}: {cause}") from error
        if isinstance(cause, MechprobeError):
            self._again(placed, cause)
            return
        raise error

    def _again(self, placed: _Placed, error: BaseException) -> None:
        """Give a cell whose worker was lost to another one; what it finished is kept."""
        self.lost += 1
        if placed.attempt <= self._cluster.retries:
            self._begin(placed.group, placed.attempt + 1)
            return
        host = placed.where.host if placed.where else "a node"
        kind = type(error).__name__
        left = [step for step in placed.todo if step.name not in self._results]
        self._give_up(left, f"lost {placed.attempt} workers, the last on {host} ({kind})")
        self._finish(placed.group)

    def _give_up(self, todo: Sequence[Step], reason: str) -> None:
        """The first step failed, and with it what needs it."""
        for i, step in enumerate(todo):
            if i == 0:
                key = step_key(step, self._results)
                self._end(step, record_failure(step, key, self._run, reason, ""))
            else:
                self._end(step, Result("skipped", "", reason))

    def _end(self, step: Step, result: Result) -> None:
        self._results[step.name] = result
        self._display.finished(step, result)

    def _finish(self, group: list[Step]) -> None:
        """Run what is left of a group here: what reports, or belongs to no cell."""
        left = [step for step in group if step.name not in self._results]
        run_group(left, self._run, self._results, self._display)
