"""Steps that write files and count their runs, for the tests of the graph and the engine."""

import errno
import os
import signal
import time
from pathlib import Path

from mechprobe.errors import CheckpointError
from mechprobe.experiments.rundir import write_text
from mechprobe.experiments.steps import Step, Task

RUNS: list[str] = []
TROUBLE: dict[str, BaseException] = {}


def write(task: Task) -> None:
    RUNS.append(task.step.name)
    if task.step.name in TROUBLE:
        raise TROUBLE[task.step.name]
    read = "".join((task.run / f"{name}.txt").read_text() for name in task.step.needs)
    write_text(task.run / task.step.outputs[0], f"{read}{task.step.params['text']};")


def report(task: Task) -> None:
    RUNS.append(task.step.name)
    if task.step.name in TROUBLE:
        raise TROUBLE[task.step.name]
    lines = [
        f"{name}: {r.status if not r.ok else 'ok'} {r.error}".strip()
        for name, r in task.results.items()
    ]
    write_text(task.run / task.step.outputs[0], "\n".join(lines))


def refuse(task: Task) -> None:
    raise CheckpointError("model.gguf: truncated; fetch it again\nmore")


def batches(task: Task) -> None:
    """Three batches through the journal, killed after the one that the parameters name."""
    journal = task.run.journal(task.step.name, task.key)
    done = journal.read()
    journal.rewrite(done)
    for i in range(len(done), 3):
        journal.append([{"i": i, "pid": os.getpid()}])
        if task.step.params.get("kill") == i and os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
    rows = [row for batch in journal.read() for row in batch]
    write_text(task.run / task.step.outputs[0], ",".join(str(row["i"]) for row in rows))
    write_text(task.run / "pids.txt", str(len({row["pid"] for row in rows})))
    journal.discard()


def linger(task: Task) -> None:
    """Says who it is and is slow, so that it can be killed."""
    Path(task.step.params["text"]).write_text(str(os.getpid()))
    time.sleep(0.5)
    read = "".join((task.run / f"{name}.txt").read_text() for name in task.step.needs)
    write_text(task.run / task.step.outputs[0], read)


def fill(task: Task) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class Silent:
    def __init__(self):
        self.events = []

    def started(self, step):
        self.events.append(("started", step.name))

    def advanced(self, step, done, total):
        self.events.append(("advanced", step.name))

    def finished(self, step, result):
        self.events.append((result.status, step.name))


def step(name, text="x", action="write", **more):
    return Step(
        name=name,
        action=f"{__name__}:{action}",
        params={"text": text},
        outputs=(f"{name}.txt",),
        **more,
    )
