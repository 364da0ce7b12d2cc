"""A step of a factorial: the answers of one cell at one temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.experiments.loading import held
from mechprobe.experiments.rendered import all_rows, encoded_rows
from mechprobe.experiments.rundir import write_jsonl
from mechprobe.experiments.steps import Task
from mechprobe.generation.base import Sampling

if TYPE_CHECKING:
    from mechprobe.generation import Completion, Engine

BATCH = 64
"""Lines an engine is given between two syncs, samples of a prompt that share a reading counted
each: what a kill can lose. Fixed, so that a resumed run batches alike."""


def draw_samples(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
) -> list[list[Completion]]:
    """The samples of each prompt, prompt by prompt.

    Above temperature 0 the samples of a prompt share one reading of it. At 0 an engine would repeat
    one answer; here it is asked anew for each, so that answers which do not waver were seen not to.
    """
    k = sampling.samples
    if sampling.greedy:
        asked = [engine.generate(prompts, max_new_tokens=max_new_tokens) for _ in range(k)]
        return [list(answers) for answers in zip(*asked, strict=True)]
    found = engine.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
    return [found[i : i + k] for i in range(0, len(found), k)]


def draw_answers(task: Task) -> None:
    """Answers to every prompt of the factorial, batch by batch."""
    params = task.step.params
    rows = all_rows(task.run, params["cell"]["model"])
    sampling = Sampling(params["temperature"], samples=params["samples"], seed=params["seed"])
    journal = task.run.journal(task.step.name, task.key)
    batches = journal.read()
    journal.rewrite(batches)
    size = BATCH if sampling.greedy else max(1, BATCH // sampling.samples)
    for at in range(len(batches) * size, len(rows), size):
        task.progress(at, len(rows))
        part = rows[at : at + size]
        drawn = draw_samples(
            held(task, "native").engine,
            [row["ids"] for row in part],
            sampling,
            params["max_new_tokens"],
        )
        batch = [
            _line(row, number, answer)
            for row, answers in zip(part, drawn, strict=True)
            for number, answer in enumerate(answers)
        ]
        journal.append(batch)
        batches.append(batch)
    digest = encoded_rows(rows).digest
    lines = [{**line, "prompts": digest} for batch in batches for line in batch]
    write_jsonl(task.run / task.step.outputs[0], lines)
    journal.discard()


def _line(row: Mapping[str, Any], number: int, answer: Completion) -> dict[str, Any]:
    return {
        "id": row["id"],
        "label": row["label"],
        "sample": number,
        "text": answer.text,
        "stop": answer.stop,
        "ids": list(answer.ids),
        "answer_start": answer.answer_start,
    }
